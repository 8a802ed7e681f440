/* Speed and cosine of libopus' pyramid search on the vectors of pyramid.rs, one core.
 *
 * On Debian, beside an unpacked libopus-dev (apt-get download libopus-dev; dpkg-deb -x libopus-dev_*.deb unpacked):
 *   cc -O2 -DSEARCH=op_pvq_search_sse2 benches/opus_search.c unpacked/usr/lib/x86_64-linux-gnu/libopus.a -lm -o opus_search
 *   ./opus_search 16 12
 * SEARCH is op_pvq_search_c where there is no SSE2. The library's build must be the one in floats.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

float SEARCH(float *x, int *point, int pulses, int dimension, int arch);

static double seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static float uniform(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(*state >> 40) / (1 << 24) - 0.5f;
}

int main(int count, char **arguments) {
    const int dimension = count > 2 ? atoi(arguments[1]) : 16, pulses = count > 2 ? atoi(arguments[2]) : 12;
    const size_t vectors = (size_t)4096 / dimension * 256;
    float *weights = malloc(vectors * dimension * sizeof *weights);
    /* The search writes past the end, in whole registers. */
    float *x = malloc((dimension + 8) * sizeof *x);
    int *point = malloc((dimension + 8) * sizeof *point);
    uint64_t state = 1;
    for (size_t at = 0; at < vectors * dimension; at++)
        weights[at] = (uniform(&state) + uniform(&state) + uniform(&state)) * 0.05f;
    double best = INFINITY, cosine = 0;
    for (int round = 0; round < 9; round++) {
        const double start = seconds();
        for (size_t vector = 0; vector < vectors; vector++) {
            memcpy(x, weights + vector * dimension, dimension * sizeof *x);
            SEARCH(x, point, pulses, dimension, 0);
        }
        best = fmin(best, seconds() - start);
    }
    for (size_t vector = 0; vector < vectors; vector++) {
        const float *original = weights + vector * dimension;
        double product = 0, square = 0, norm = 0;
        memcpy(x, original, dimension * sizeof *x);
        SEARCH(x, point, pulses, dimension, 0);
        for (int at = 0; at < dimension; at++) {
            product += (double)original[at] * point[at];
            square += (double)point[at] * point[at];
            norm += (double)original[at] * original[at];
        }
        cosine += product / sqrt(square * norm);
    }
    printf("D %d K %d: %.2f million vectors/s, mean cosine %.6f\n", dimension, pulses, vectors / best / 1e6, cosine / vectors);
    return 0;
}
