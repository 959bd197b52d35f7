"""Look at pages as people do: a picture for each width and scheme, and what axe-core finds.

    python -m tests.kit.look_at_pages store.html students.html --out build/looked --axe axe.min.js

axe-core is not part of this repository: `npm pack axe-core` has `package/axe.min.js`. The status is
1 where it finds a violation, a page is wider than its window, or a browser complains.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.kit.browser import Browser, find_browser

#: A desk and a phone, in pixels.
WINDOWS = ((1280, 900), (390, 844))
_RUN = """axe.run({resultTypes: ['violations']}).then(found => JSON.stringify(found.violations.map(
each => each.id + ': ' + each.help + ' (' + each.nodes[0].html.slice(0, 160) + ')')))"""


def look(browser: Browser, page: Path, out: Path, axe: str | None) -> Iterator[str]:
    """Make the pictures of a page, and yield what is wrong with it."""
    for width, height in WINDOWS:
        for dark in (False, True):
            browser.open(page, width=width, height=height, dark=dark)
            scheme = "dark" if dark else "light"
            browser.screenshot(out / f"{page.stem}-{width}-{scheme}.png")
            where = f"{page}, {width} pixels, {scheme}"
            browser.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
            browser.screenshot(out / f"{page.stem}-{width}-{scheme}-open.png")
            yield from (f"{where}: {said}" for said in browser.said)
            if (wide := browser.ask("document.documentElement.scrollWidth")) > width:
                yield f"{where}: is {wide} pixels wide"
            if axe is not None:
                browser.call("Runtime.evaluate", expression=axe)
                answer = browser.call(
                    "Runtime.evaluate", expression=_RUN, awaitPromise=True, returnByValue=True
                )
                yield from (f"{where}: {v}" for v in json.loads(answer["result"]["value"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/looked"), help="for the pictures")
    parser.add_argument("--axe", type=Path, help="axe.min.js of axe-core")
    given = parser.parse_args()
    binary = find_browser()
    if binary is None:
        parser.error("there is no Chromium here (Debian: apt-get install chromium)")
    given.out.mkdir(parents=True, exist_ok=True)
    axe = given.axe.read_text(encoding="utf-8") if given.axe else None
    with tempfile.TemporaryDirectory() as profile, Browser(binary, Path(profile)) as browser:
        wrong = [said for page in given.pages for said in look(browser, page, given.out, axe)]
    print("\n".join(wrong or [f"nothing is wrong; pictures are in {given.out}"]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
