#!/usr/bin/env python3
"""Reports must look right in a browser: light and dark, on a desk and on a phone, without a network and without scripts.

usage: report.py --bantam BINARY [--chromium BINARY] [--keep DIR]

Makes reports of the built-in example, alone and beside another artifact, renders each with headless Chromium, and checks that
the picture is there, that it has the brightness of its mode, that a phone's page is no wider than the phone, and that nothing
was asked for over the network. Needs nothing but Python and Chromium.
"""

import argparse
import contextlib
import http.server
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import zlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
DESK, PHONE = 1280, 390
# Chromium opens no window narrower than this; a phone is a frame of its width in one.
NARROWEST_WINDOW = 500
DARK, LIGHT = 0, 1


def decode_png(data: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and the rows of an 8-bit RGB or RGBA picture, as RGB."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "not a PNG"
    at, compressed, header = 8, b"", None
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + length:at + 12 + length])[0], "wrong CRC"
        header = struct.unpack(">IIBBBBB", body) if kind == b"IHDR" else header
        compressed += body if kind == b"IDAT" else b""
        at += 12 + length
    width, height, depth, colour, _, _, interlaced = header
    assert (depth, interlaced) == (8, 0) and colour in (2, 6), header
    channels = 3 if colour == 2 else 4
    raw, stride, rows = zlib.decompress(compressed), width * channels, []
    before = bytearray(stride)
    for y in range(height):
        start = y * (stride + 1)
        method, line = raw[start], bytearray(raw[start + 1:start + 1 + stride])
        for i in range(stride if method else 0):
            left = line[i - channels] if i >= channels else 0
            up = before[i]
            corner = before[i - channels] if i >= channels else 0
            if method == 1:
                predicted = left
            elif method == 2:
                predicted = up
            elif method == 3:
                predicted = (left + up) // 2
            else:
                estimate = left + up - corner
                predicted = min((left, up, corner), key=lambda value: abs(estimate - value))
            line[i] = (line[i] + predicted) & 255
        rows.append(bytes(line) if channels == 3 else bytes(b for i, b in enumerate(line) if i % 4 != 3))
        before = line
    return width, height, rows


class Browser:
    def __init__(self, binary: str, folder: pathlib.Path):
        self.binary, self.folder = binary, folder

    def run(self, *arguments: str) -> str:
        command = [self.binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                   "--disable-dev-shm-usage", "--disable-background-networking", f"--user-data-dir={self.folder / 'profile'}",
                   *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
        if done.returncode != 0:
            raise RuntimeError(f"{self.binary} exited with {done.returncode}: {done.stderr[-500:]}")
        return done.stdout

    def picture(self, url: str, width: int, height: int, mode: int, to: pathlib.Path) -> tuple[int, int, list[bytes]]:
        to.unlink(missing_ok=True)
        self.run(f"--window-size={width},{height}", f"--blink-settings=preferredColorScheme={mode}", f"--screenshot={to}", url)
        return decode_png(to.read_bytes())


@contextlib.contextmanager
def served(folder: pathlib.Path):
    """Serves a folder, and tells what was asked for: a page measures a frame only from its own origin."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def luminance(rows: list[bytes], columns: int) -> float:
    """Mean brightness, 0 to 1, of every fourth row."""
    total = count = 0
    for row in rows[::4]:
        part = row[:3 * columns]
        total += 0.2126 * sum(part[0::3]) + 0.7152 * sum(part[1::3]) + 0.0722 * sum(part[2::3])
        count += len(part) // 3
    return total / count / 255


def colours(rows: list[bytes], columns: int) -> int:
    seen: set[bytes] = set()
    for row in rows[::4]:
        seen.update(row[i:i + 3] for i in range(0, 3 * columns, 3))
    return len(seen)


FRAME = """<!doctype html><title>frame</title><body style="margin:0">
<iframe id="page" src="{page}" style="width:{width}px;height:{height}px;border:0;display:block"></iframe>
<pre id="result"></pre>
<script>
addEventListener("load", () => {{
  const inner = document.getElementById("page").contentDocument, root = inner.documentElement;
  const outside = [...inner.querySelectorAll("body *")].filter((element) =>
    !element.closest(".scroll") && element.getBoundingClientRect().right > {width} + 0.5).map((element) => element.tagName);
  const letters = [...inner.querySelectorAll("svg text")].map((text) => {{
    const svg = text.ownerSVGElement;
    return parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  }});
  const overlaps = [...inner.querySelectorAll("svg")].flatMap((svg) => {{
    const boxes = [...svg.querySelectorAll("text")].map((text) => [text.textContent.trim(), text.getBoundingClientRect()]);
    const frame = svg.getBoundingClientRect();
    const cut = boxes.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1 ||
      box.top < frame.top - 1 || box.bottom > frame.bottom + 1).map(([name]) => name + " is cut off");
    return cut.concat(boxes.flatMap(([name, a], index) => boxes.slice(index + 1).filter(([, b]) =>
      a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2).map(([other]) => name + "/" + other)));
  }});
  document.getElementById("result").textContent = "measured " + JSON.stringify({{
    width: root.scrollWidth, height: root.scrollHeight, figures: inner.querySelectorAll("svg").length,
    smallest: Math.min(...letters), outside, overlaps}});
}});
</script></body>"""


def measure(browser: Browser, site: str, folder: pathlib.Path, page: str, width: int) -> dict:
    (folder / "frame.html").write_text(FRAME.format(page=page, width=width, height=900))
    text = browser.run(f"--window-size={max(width, NARROWEST_WINDOW)},1000", "--virtual-time-budget=4000", "--dump-dom",
                       f"{site}/frame.html")
    found = re.search(r"measured (\{.*?\})</pre>", text)
    assert found, f"the page did not tell its size: {text[-500:]}"
    return json.loads(found.group(1).replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


def check(browser: Browser, site: str, asked: list[str], folder: pathlib.Path, page: str, keep: pathlib.Path | None) -> list[str]:
    wrong = []
    for width in (DESK, PHONE):
        size = measure(browser, site, folder, page, width)
        if size["width"] > width or size["outside"]:
            wrong.append(f"{page} at {width}: {size['width']} wide, {sorted(set(size['outside']))} outside")
        if size["figures"] < 3 or size["overlaps"]:
            wrong.append(f"{page} at {width}: {size['figures']} figures, labels overlap: {size['overlaps'][:8]}")
        if size["smallest"] < 9:
            wrong.append(f"{page} at {width}: letters of {size['smallest']:.1f} pixels")
        url = f"{site}/{page}"
        window = width
        if width < NARROWEST_WINDOW:
            frame = f'<!doctype html><body style="margin:0"><iframe src="{page}" style="width:{width}px;height:{size["height"]}px;border:0"></iframe>'
            (folder / "phone.html").write_text(frame)
            url, window = f"{site}/phone.html", NARROWEST_WINDOW
        bright = {}
        for mode in (LIGHT, DARK):
            name = f"{page.removesuffix('.html')}-{width}-{'light' if mode else 'dark'}.png"
            shown, height, rows = browser.picture(url, window, size["height"], mode, folder / name)
            bright[mode] = luminance(rows, width)
            distinct = colours(rows, width)
            if (shown, height) != (window, size["height"]) or distinct < 50:
                wrong.append(f"{name}: {shown} × {height}, {distinct} colours")
            if keep:
                shutil.copy(folder / name, keep / name)
        if not (bright[LIGHT] > 0.8 and bright[DARK] < 0.2):
            wrong.append(f"{page} at {width}: brightness {bright[LIGHT]:.2f} when light, {bright[DARK]:.2f} when dark")
        print(f"{page} at {width}: {size['height']} high, {size['figures']} figures, letters from {size['smallest']:.1f} px, "
              f"brightness {bright[LIGHT]:.2f} and {bright[DARK]:.2f}")
    others = {path for path in asked if path not in (f"/{page}", "/frame.html", "/phone.html", "/favicon.ico")}
    asked.clear()
    if others:
        wrong.append(f"{page} asks for {sorted(others)}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bantam", required=True)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome") or "chromium")
    parser.add_argument("--keep", type=pathlib.Path, help="copy pictures and pages here")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    binary = str(pathlib.Path(options.bantam).resolve())

    def bantam(*arguments: object) -> None:
        subprocess.run([binary, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for recipe in ("int4", "mixed-precision"):
            bantam("run", "--quiet", ROOT / f"fixtures/recipes/{recipe}.toml", "--out", folder / recipe)
        text, source = ROOT / "fixtures/text/forward.txt", ROOT / "fixtures/tiny-llama"
        bantam("report", folder / "int4", "--quiet", "--source", source, "--out", folder / "alone.html")
        bantam("report", folder / "mixed-precision", "--quiet", "--source", source, "--against", folder / "int4",
               "--text", text, "--context", 64, "--out", folder / "beside.html")
        pages = ["alone.html", "beside.html"]
        if options.keep:
            for page in pages:
                shutil.copy(folder / page, options.keep / page)
        browser, wrong = Browser(options.chromium, folder), []
        with served(folder) as (site, asked):
            for page in pages:
                wrong += check(browser, site, asked, folder, page, options.keep)
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
