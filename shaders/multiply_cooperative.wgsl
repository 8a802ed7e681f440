// Products of F16 matrices on the units that multiply small matrices whole (tensor cores, simdgroup matrices).
//
// Formula: out = alpha · L · R + beta · out; products of F16 are exact in F32, the order in which they are added up is
// the adapter's.
// Layout: as in multiply.wgsl with LEFT_TYPE and RIGHT_TYPE F16; one product, not heads.
// Threads: 128 a tile of 4·MATRIX × 4·MATRIX. Its four quarters, of two by two matrices of MATRIX × MATRIX each, go round
// the subgroups, as often as ROUNDS says; subgroups beyond the last quarter do that once more, since all of a workgroup
// have to take part in what matrices do, and write the same sums. Each step of 32 along the depth is brought to workgroup memory, where everything
// past an end is zero, and the sums go through it too, so that no matrix is loaded or stored across an end.
// needs: parts/cooperative_16.wgsl parts/product.wgsl
enable f16;
enable wgpu_cooperative_matrix;

const THREADS: u32 = 128u;
const TILE: u32 = 4u * MATRIX;
const STEP: u32 = 32u;
// Lines begin 16 bytes farther apart than they are long, so that neighbours meet in no common bank.
const PITCH: u32 = STEP + 8u;
const QUARTERS: u32 = 4u;

// Quarters of the largest subgroups that the adapter may run: 4 / (THREADS / threads of a subgroup), rounded up.
override ROUNDS: u32 = 4u;

// [TILE, PITCH]: rows of L and columns of R, both along the depth; [TILE, TILE] sums.
var<workgroup> left_step: array<f16, TILE * PITCH>;
var<workgroup> right_step: array<f16, TILE * PITCH>;
var<workgroup> sums: array<f32, TILE * TILE>;

// Which line of the tile and which depth a quad begins at, and whether it runs along the lines.
struct Quad {
    line: u32,
    depth: u32,
}

fn quad_of(index: u32, along_lines: bool) -> Quad {
    if along_lines {
        return Quad(4u * (index % (TILE / 4u)), index / (TILE / 4u));
    }
    return Quad(index / (STEP / 4u), 4u * (index % (STEP / 4u)));
}

fn bring_left(first: u32, row: u32, start: u32, index: u32) {
    for (var i = index; i < TILE * STEP / 4u; i += THREADS) {
        let at = quad_of(i, LEFT_TRANSPOSED);
        if LEFT_TRANSPOSED {
            let quad = left_quad(first, start + at.depth, row + at.line);
            for (var j = 0u; j < 4u; j++) {
                left_step[(at.line + j) * PITCH + at.depth] = f16(quad[j]);
            }
        } else {
            let quad = left_quad(first, row + at.line, start + at.depth);
            for (var j = 0u; j < 4u; j++) {
                left_step[at.line * PITCH + at.depth + j] = f16(quad[j]);
            }
        }
    }
}

fn bring_right(first: u32, column: u32, start: u32, index: u32) {
    for (var i = index; i < TILE * STEP / 4u; i += THREADS) {
        let at = quad_of(i, !RIGHT_TRANSPOSED);
        if RIGHT_TRANSPOSED {
            let quad = right_quad(first, column + at.line, start + at.depth);
            for (var j = 0u; j < 4u; j++) {
                right_step[at.line * PITCH + at.depth + j] = f16(quad[j]);
            }
        } else {
            let quad = right_quad(first, start + at.depth, column + at.line);
            for (var j = 0u; j < 4u; j++) {
                right_step[(at.line + j) * PITCH + at.depth] = f16(quad[j]);
            }
        }
    }
}

@compute @workgroup_size(THREADS)
fn multiply_cooperative(
    @builtin(workgroup_id) tile: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let first_row = tile.y * TILE;
    let first_column = tile.x * TILE;
    for (var round = 0u; round < ROUNDS; round++) {
        let quarter = min(round * subgroups + subgroup, QUARTERS - 1u);
        let row = quarter / 2u * 2u * MATRIX;
        let column = quarter % 2u * 2u * MATRIX;
        var s00 = Sums();
        var s01 = Sums();
        var s10 = Sums();
        var s11 = Sums();
        for (var start = 0u; start < shape.depth; start += STEP) {
            bring_left(shape.left.first, first_row, start, index);
            bring_right(shape.right.first, first_column, start, index);
            workgroupBarrier();
            for (var k = 0u; k < STEP; k += MATRIX) {
                // Rows of L one after the other; columns of R one after the other.
                let a = coopLoadT<Left>(&left_step[row * PITCH + k], PITCH);
                let b = coopLoadT<Left>(&left_step[(row + MATRIX) * PITCH + k], PITCH);
                let c = coopLoad<Right>(&right_step[column * PITCH + k], PITCH);
                let d = coopLoad<Right>(&right_step[(column + MATRIX) * PITCH + k], PITCH);
                s00 = coopMultiplyAdd(a, c, s00);
                s01 = coopMultiplyAdd(a, d, s01);
                s10 = coopMultiplyAdd(b, c, s10);
                s11 = coopMultiplyAdd(b, d, s11);
            }
            workgroupBarrier();
        }
        coopStoreT(s00, &sums[row * TILE + column], TILE);
        coopStoreT(s01, &sums[row * TILE + column + MATRIX], TILE);
        coopStoreT(s10, &sums[(row + MATRIX) * TILE + column], TILE);
        coopStoreT(s11, &sums[(row + MATRIX) * TILE + column + MATRIX], TILE);
    }
    workgroupBarrier();
    for (var i = index; i < TILE * TILE / 4u; i += THREADS) {
        let at = 4u * i;
        let quad = vec4<f32>(sums[at], sums[at + 1u], sums[at + 2u], sums[at + 3u]);
        store(shape.out.first, first_row + at / TILE, first_column + at % TILE, quad);
    }
}
