"""Every quantizer on one model at several sizes: a table and a plot of what is lost against bits per weight.

    python3 benches/results.py MODEL CALIBRATION EVALUATION [--out FOLDER] [--only PASS ...]

MODEL is a checkpoint, CALIBRATION and EVALUATION are texts. Calibration takes 128 windows of 256 tokens, evaluation all
windows of 256. Writes results.md and results.svg into FOLDER (docs/ beside this script where nothing is said). Bits per
weight are those of `bantam plan`: everything that is stored for the encoded matrices. Needs the release build.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
BANTAM = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")) / "release" / "bantam"

INTEGER = 'bits = {bits}\ngroup_size = {group}\nsymmetric = false\n'
# Name of the series: (passes before, the encoding with its fixed settings, layout, one set of settings for each point).
SERIES = {
    "rtn": ("", "rtn", "bantam", [INTEGER.format(bits=b, group=g) for b, g in ((4, 128), (3, 128), (2, 64))]),
    "awq": (
        '[[pass]]\nuse = "awq"\n',
        "rtn",
        "bantam",
        [INTEGER.format(bits=b, group=g) for b, g in ((4, 128), (3, 128), (2, 64))],
    ),
    "gptq": ("", "gptq", "bantam", [INTEGER.format(bits=b, group=g) for b, g in ((4, 128), (3, 128), (2, 64))]),
    "rotate + gptq": (
        '[[pass]]\nuse = "rotate"\n',
        "gptq",
        "bantam",
        [INTEGER.format(bits=b, group=g) for b, g in ((4, 128), (3, 128), (2, 64))],
    ),
    "pvq": ("", "pvq", "bantam", [f"bits = {bits}\n" for bits in (4.25, 3.25, 2.25)]),
    "vptq": ("", "vptq", "vptq", [f"bits = {bits}\n" for bits in (4.25, 3.25, 2.25)]),
}
COLOURS = ["#888888", "#d95f02", "#1b9e77", "#66a61e", "#7570b3", "#e7298a"]


PAGE = """# Results

Every quantizer on one model, at two to four bits: what it loses against what it stores. Written by
`benches/results.py`, which has the recipes; the texts are not part of this repository.

![KL divergence against bits per weight](results.svg)

Model: the trained Llama of 4,196,608 parameters in `fixtures/tiny-llama`. Calibration: 128 windows of 256 tokens.
Evaluation: another text, 68,085 predicted tokens. Embedding and head stay dense. Bits per weight count everything that is
stored for the encoded matrices: scales, zero points, gains, codebooks, padding. KL divergence is KL(dense ‖ compressed) in
nats per token.

{table}

{lines}
"""


def reading(rows):
    """The best at each size in words, from the figures alone."""
    lines = []
    for low, high in ((3.9, 4.4), (2.9, 3.4), (1.9, 2.4)):
        found = sorted((row for row in rows if low < row[1] <= high), key=lambda row: row[2]["kl"])
        if len(found) > 1:
            best, next_best = found[0], found[1]
            share = best[2]["kl"] / next_best[2]["kl"]
            lines.append(
                f"- From {low:g} to {high:g} bits `{best[0]}` loses least: {best[2]['kl']:.5f} at {best[1]:.2f} bits, {share:.2f} of "
                f"`{next_best[0]}` at {next_best[1]:.2f}."
            )
    return "\n".join(lines)


def run(*words):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


def measure(arguments, folder, name, point):
    """Bits per weight, KL divergence, its standard error, perplexity and top-1 agreement of one recipe."""
    before, encoding, layout, points = SERIES[name]
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'schema = 1\nmodel = "{arguments.model.resolve()}"\n\n'
        f'[calibration]\ntext = ["{arguments.calibration.resolve()}"]\nsequences = 128\nsequence_length = 256\n\n'
        f'{before}\n[[pass]]\nuse = "{encoding}"\n{points[point]}\n'
        f'[artifact]\nout = "{folder / "out"}"\nlayout = "{layout}"\n'
    )
    plan = run(BANTAM, "plan", recipe, "--json")
    if plan.returncode:
        return plan.stderr.strip().splitlines()[0]
    done = run(BANTAM, "run", recipe, "--fresh", "--quiet")
    if done.returncode:
        return done.stderr.strip().splitlines()[0]
    found = run(
        BANTAM, "eval", folder / "out", "--text", arguments.evaluation, "--reference", arguments.model,
        "--context", 256, "--json",
    )  # fmt: skip
    if found.returncode:
        return found.stderr.strip().splitlines()[0]
    return json.loads(plan.stdout)["bits_per_weight"], json.loads(found.stdout)


def table(rows):
    lines = [
        "| passes | bits/weight | KL divergence | top-1 agreement | perplexity |",
        "|---|---|---|---|---|",
    ]
    for name, bits, figures in rows:
        lines.append(
            f"| `{name}` | {bits:.3f} | {figures['kl']:.5f} | {figures['top1']:.4f} | {figures['perplexity']:.4f} |"
        )
    return "\n".join(lines)


def plot(rows):
    """KL divergence, logarithmic, against bits per weight; readable on light and dark grounds."""
    width, height, left, bottom, top, right = 720, 440, 70, 50, 20, 150
    bits = [bits for _, bits, _ in rows]
    values = [math.log10(figures["kl"]) for _, _, figures in rows]
    low, high = math.floor(min(bits) * 2) / 2, math.ceil(max(bits) * 2) / 2
    floor, ceiling = min(values) - 0.1, max(values) + 0.1
    x = lambda value: left + (value - low) / (high - low) * (width - left - right)
    y = lambda value: top + (ceiling - value) / (ceiling - floor) * (height - top - bottom)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        "<title>KL divergence from the dense model against bits per weight</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    tick = low
    while tick <= high + 1e-9:
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - bottom}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick:g}</text>')
        tick += 0.5
    for power in range(math.floor(floor), math.ceil(ceiling) + 1):
        for digit in (1, 2, 5):
            value = power + math.log10(digit)
            if floor <= value <= ceiling:
                parts.append(
                    f'<line x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#dddddd"/>'
                )
                label = f"{digit * 10.0**power:g}"
                parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>')
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">bits per weight, everything counted</text>'
    )
    parts.append(
        f'<text transform="translate(16 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">'
        "KL divergence, nats per token</text>"
    )
    names = list(dict.fromkeys(name for name, _, _ in rows))
    for index, name in enumerate(names):
        colour = COLOURS[index % len(COLOURS)]
        points = sorted((bits, math.log10(figures["kl"])) for known, bits, figures in rows if known == name)
        path = " ".join(f"{x(bits):.1f},{y(value):.1f}" for bits, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(b):.1f}" cy="{y(v):.1f}" r="4" fill="{colour}"/>' for b, v in points]
        level = top + 20 + 22 * index
        parts.append(f'<circle cx="{width - right + 20}" cy="{level - 4}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{width - right + 32}" y="{level}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("calibration", type=pathlib.Path)
    parser.add_argument("evaluation", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "docs")
    parser.add_argument("--only", nargs="*", default=list(SERIES))
    arguments = parser.parse_args()
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only:
            for point in range(len(SERIES[name][3])):
                result = measure(arguments, pathlib.Path(scratch), name, point)
                if isinstance(result, str):
                    failures.append(f"{name}: {result}")
                    print(f"{name}: {result}", file=sys.stderr)
                    continue
                bits, figures = result
                short = {
                    "kl": figures["mean_kl_divergence"],
                    "top1": figures["top1_agreement"],
                    "perplexity": figures["perplexity"],
                }
                print(f"{name:15} {bits:.3f} {short}", flush=True)
                rows.append((name, bits, short))
    (arguments.out / "results.md").write_text(PAGE.format(table=table(rows), lines=reading(rows)))
    (arguments.out / "results.svg").write_text(plot(rows))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
