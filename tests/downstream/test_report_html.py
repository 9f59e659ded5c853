"""The report's page: it needs nothing else, escapes every name, and holds every cell."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream import report_plots as plots
from downstream.cells import Cell
from downstream.leaderboard import Beside, Stock
from downstream.report_cells import Collection
from downstream.report_data import make_report
from downstream.report_html import page
from downstream.report_markup import breakable, clean, el, text
from downstream.report_svg import HEIGHT, WIDTH, Chart, Ink, Scale
from downstream.tables import table
from hear_pretrainedsed.registry import EFFICIENTSED_PSDS1
from tests.downstream.browser import Browser, find_browser
from tests.downstream.example_results import example_cell, grid
from tests.downstream.test_report import collected

EMPTY = {"meta", "br", "wbr", "link"}
NASTY = '</script><script>document.title="bad"</script><img src=x onerror=alert(1)>"\'&amp;'


class Page(HTMLParser):
    """Elements of a page: names, attributes, text; refuses tags that are not closed in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[tuple[str, str]] = []
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def a_page(cells: list[Cell]) -> str:
    return page(make_report(collected(cells)))


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    names = ("beats.ssl", "beats.weak", "beats.strong", "fmn10.weak", "fmn10.strong", "x.strong")
    return grid(names, ("office_like", "piano_like"), seeds=2)


@pytest.fixture(scope="module")
def content(cells: list[Cell]) -> str:
    return a_page(cells)


# ---- The page


def test_the_page_needs_nothing_else(content: str) -> None:
    found = Page(content)
    for _, attrs in found.tags:
        for name, value in attrs.items():
            assert not name.startswith("on") and name != "style"
            if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
                assert value.startswith("#") or value == "data:,"
    assert not found.of("iframe") and not found.of("object") and not found.of("img")
    (style,) = [data for tag, data in found.text if tag == "style"]
    assert "url(" not in style and "@import" not in style


def test_its_policy_allows_its_own_script_and_styles_only(content: str) -> None:
    found = Page(content)
    (policy,) = [a["content"] for a in found.of("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; ")
    scripts = [data for tag, data in found.text if tag == "script"]
    styles = [data for tag, data in found.text if tag == "style"]
    assert [a.get("type") for a in found.of("script")] == ["application/json", None]
    for text_, kind in ((scripts[1], "script"), (styles[0], "style")):
        digest = base64.b64encode(hashlib.sha256(text_.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def embedded(content: str) -> list[dict]:
    (text_, _) = [data for tag, data in Page(content).text if tag == "script"]
    return json.loads(text_)


def test_every_cell_is_in_it_without_its_draws(content: str, cells: list[Cell]) -> None:
    found = {one["id"]: one for one in embedded(content)}
    assert found.keys() == {cell.id for cell in cells}
    for cell in cells:
        line = json.loads(cell.to_line())
        one = found[cell.id]
        assert one.keys() == line.keys()
        for name, metric in line["metrics"].items():
            assert "draws" not in one["metrics"][name]
            assert one["metrics"][name].keys() == metric.keys() - {"draws"}
            assert one["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-5)


def test_each_value_opens_to_its_own_cells(content: str, cells: list[Cell]) -> None:
    listed, by_id = embedded(content), {cell.id: cell for cell in cells}
    shown = set()
    for attrs in Page(content).of("button"):
        if "data-cells" not in attrs:
            continue
        of = [by_id[listed[int(n)]["id"]] for n in attrs["data-cells"].split()]
        assert len({(c.checkpoint, c.task, c.protocol, c.mode) for c in of}) == 1
        assert [c.seed for c in of] == sorted({c.seed for c in of})
        shown |= {c.id for c in of}
    assert shown == by_id.keys()


def test_sections_hold_their_protocol_alone(content: str) -> None:
    parts = content.split("<h2>")[1:]
    names = [part.split("</h2>")[0] for part in parts]
    assert names == ["Protocol hear", "Protocol paper", "Protocol best", "Published trade-offs"]
    assert "knn" in parts[0] and "finetune" not in parts[0]
    for part in parts[1:3]:
        assert "Probe against fine-tune" in part and "knn" not in part
        assert "Gains by stage" in part and "Accuracy against cost" in part


@given(st.text(min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_no_name_is_markup(name: str) -> None:
    facts = (("event_onset_200ms_fms",), 12, name, 2)
    made = [
        example_cell(f"{name}.weak", task=name, facts=facts, mode=mode, protocol=name)
        for mode in ("probe", "finetune")
    ]
    try:
        found = Page(a_page(made))
    except UnicodeEncodeError:  # half of a pair: no line of JSON can hold it
        return
    plain = Page(
        a_page([example_cell("x.weak", protocol="y", mode=m) for m in ("probe", "finetune")])
    )
    tags = lambda p: sorted(tag for tag, _ in p.tags if tag not in ("wbr", "small"))  # noqa: E731
    assert set(tags(found)) == set(tags(plain))
    assert len(found.of("script")) == 2
    assert f"Protocol {clean(name)}" in {data for tag, data in found.text if tag == "h2"}


def test_a_nasty_name_is_text_everywhere() -> None:
    nasty = f"{NASTY}.strong"
    facts = (("event_onset_200ms_fms",), 12, NASTY, 2)
    made = [example_cell(nasty, task=NASTY, facts=facts, protocol=NASTY, recipe={NASTY: NASTY})]
    content = a_page(made)
    assert "<img" not in content and content.count("<script") == 2
    (one,) = embedded(content)
    assert one["checkpoint"] == nasty and one["recipe"] == {NASTY: NASTY}


def test_scores_of_heareval_that_are_not_defined_sort_last() -> None:
    facts = ("beats.strong", None, "", "office_like", "v1", "", "event_onset_200ms_fms")
    stock = [Stock("beats.strong", *facts, score, Path("x")) for score in (math.nan, 0.51283)]
    (row, *_) = table([example_cell()])
    found = Page(page(make_report(Collection()), [Beside(one, row) for one in stock]))
    values = [attrs["data-v"] for attrs in found.of("td") if attrs.get("class") == "n"]
    ours = repr(row.value)
    assert values == ["", ours, "", "1", "0.51283", ours, repr(row.value - 0.51283), "1"]


# ---- Markup


def test_elements() -> None:
    assert el("td", "a<b", class_="x y", data_v='"', hidden=None) == (
        '<td class="x y" data-v="&quot;">a&lt;b</td>'
    )
    assert el("p", [el("br"), None, 3, ("&", el("b", "x"))]) == "<p><br>3&amp;<b>x</b></p>"
    assert text("a\x00\ud800\u202eb\nc") == "a\ufffd\ufffd\ufffdb\nc"
    assert breakable("a_b.<c>") == "a_<wbr>b.<wbr>&lt;c&gt;"


# ---- Charts


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.booleans())
def test_ticks_are_few_and_inside(low: float, width: float, log: bool) -> None:
    low = abs(low) + 1e-3 if log else low
    scale = Scale(low, low + width, 0.0, 100.0, log)
    assert 2 <= len(scale.ticks) <= (25 if log else 8)
    for tick in scale.ticks:
        assert -1 <= scale(tick) <= 101


@given(st.lists(st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)), max_size=20))
@settings(deadline=None)
def test_labels_cover_no_point_and_no_label(points: list[tuple[float, float]]) -> None:
    chart = Chart("", Scale(0, 1, 44, WIDTH - 12), Scale(0, 1, HEIGHT - 44, 26))
    for x, y in points:
        chart.point(x, y, Ink(), "hint")
    n = len(chart.taken)
    for x, y in points:
        chart.label(x, y, "a name")
    boxes = chart.taken
    for i, one in enumerate(boxes[n:], n):
        for other in boxes[:i]:
            apart = one[0] >= other[2] or other[0] >= one[2]
            assert apart or one[1] >= other[3] or other[1] >= one[3]


def hints(figure: str | None) -> Iterator[str]:
    return (data for tag, data in Page(figure).text if tag == "title")


def test_stage_gains_are_lines_of_plain_checkpoints(cells: list[Cell]) -> None:
    more = [example_cell("fmn10.strong+tf-256"), example_cell("alone.ssl")]
    section = make_report(collected([c for c in cells if c.protocol == "hear"] + more)).sections[0]
    column = next(c for c in section.main_columns if c.title == "office_like, probe")
    figure = plots.stage_gains(section, column)
    wanted = ["beats.ssl", "beats.weak", "beats.strong", "fmn10.weak", "fmn10.strong"]
    assert [hint.split(":")[0] for hint in hints(figure)] == wanted
    values = {net.checkpoint: row.value for net, row in section.rows(column)}
    for hint in hints(figure):
        name, number = re.match(r"(\S+): ([\d.]+)", hint).groups()
        assert float(number) == pytest.approx(values[name], abs=5e-4)
    assert figure.count("<polyline") == 2


def test_accuracy_against_macs_names_the_front(cells: list[Cell]) -> None:
    section = make_report(collected(cells)).sections[0]
    column = section.main_columns[0]
    found = [(n, row) for n, row in section.rows(column) if n.gmacs]
    front = plots._front(found, column.maximize)
    for net, row in found:
        better = [
            n for n, r in found if n.gmacs <= net.gmacs and r.value > row.value
        ]  # cheaper or equal, and better
        assert ((net, row) in front) == (not better)
    figure = plots.accuracy_against_macs(section, column)
    assert len(list(hints(figure))) == len(found) == 5  # nobody knows what x.strong costs


def test_less_is_better_turns_the_front() -> None:
    cells = [example_cell("fmn04.strong"), example_cell("beats.strong", shift=0.3)]
    section = make_report(collected(cells)).sections[0]
    (column,) = [c for c in section.columns if c.metric == "segment_1s_er"]
    assert not column.maximize
    front = plots._front(section.rows(column), column.maximize)
    assert [net.checkpoint for net, _ in front] == ["fmn04.strong", "beats.strong"]


def test_no_chart_without_points() -> None:
    section = make_report(collected([example_cell("x.ssl"), example_cell("y.ssl")])).sections[0]
    (column,) = section.main_columns
    assert plots.stage_gains(section, column) is None
    assert plots.accuracy_against_macs(section, column) is None


def test_published_charts_hold_the_registry() -> None:
    by_model = list(hints(plots.by_sequence_model()))
    wanted = {
        f"fmn10.strong{'+' if s else ''}{s}": v for s, v in EFFICIENTSED_PSDS1["fmn10"].items()
    }
    assert {hint.split(":")[0]: float(hint.split()[1]) for hint in by_model} == wanted
    by_width = {h.split(":")[0]: float(h.split()[1]) for h in hints(plots.by_width())}
    for width, numbers in EFFICIENTSED_PSDS1.items():
        assert by_width[f"{width}.strong"] == numbers[""]
    lines = [[n for n in by_width if f"+{model}-" in n] for model in ("tf", "hybrid", "gru")]
    assert [len(line) for line in lines] == [5, 5, 5]
    assert by_width["beats.strong"] == 46.5 and "frame_mn10.strong" not in by_width
    for figure in (plots.by_sequence_model(), plots.by_width()):
        for place in re.findall(r'c[xy]="([\d.]+)"', figure):
            assert 0 < float(place) < WIDTH


# ---- In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        warnings.warn("NO BROWSER: nobody looked at the report's page", stacklevel=1)
        pytest.skip("no Chromium on the path")
    with Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


COLUMN = "[...document.querySelector('tbody').rows].map(r => r.cells[{}].dataset.v)"


@pytest.mark.slow
def test_the_page_works_in_a_browser(browser: Browser, content: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(content)
    browser.open(path)
    assert browser.run("document.title") == "Report: hear, paper, best"
    for _ in range(2):
        browser.click("thead th:nth-child(4) button")
        values = [float(v) for v in browser.run(COLUMN.format(3))]
        order = browser.run("document.querySelector('th:nth-child(4)').ariaSort")
        assert values == sorted(values, reverse=order == "descending") and len(values) == 6
    assert order == "ascending"  # the best first, then the other way round
    browser.click("thead th:nth-child(3) button")
    costs = browser.run(COLUMN.format(2))
    assert costs[-1] == "" and costs[:-1] == sorted(costs[:-1], key=float)

    browser.click("tbody tr:nth-child(2) td:nth-child(4) button")
    shown = browser.run("[...document.querySelectorAll('.opened pre')].map(e => e.textContent)")
    opened = [json.loads(one) for one in shown]
    name = browser.run("document.querySelector('tbody tr:nth-child(2) th').textContent")
    assert [(one["checkpoint"], one["seed"]) for one in opened] == [(name, 0), (name, 1)]
    browser.click("thead th:nth-child(1) button")  # sorting closes what is open
    assert browser.run("document.querySelectorAll('.opened').length") == 0
    for _ in range(2):
        browser.click("tbody tr:nth-child(2) td:nth-child(4) button")
    assert browser.run("document.querySelectorAll('.opened').length") == 0
    assert browser.errors == []


@pytest.mark.slow
def test_the_page_fits_a_phone_and_the_dark(browser: Browser, content: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(content)
    colours = {}
    for width, dark in itertools.product((390, 1200), (False, True)):
        browser.open(path, width, 844, dark=dark)
        assert browser.run("document.documentElement.scrollWidth") <= width
        colours[dark] = browser.run("getComputedStyle(document.body).backgroundColor")
        assert browser.picture(tmp_path / "page.png").stat().st_size > 10_000
    light, dark_ = ([int(n) for n in re.findall(r"\d+", colours[d])[:3]] for d in (False, True))
    assert min(light) > 230 and max(dark_) < 60
    assert browser.errors == []


@pytest.mark.slow
def test_a_nasty_name_does_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    facts = (("event_onset_200ms_fms",), 12, NASTY, 2)
    made = [example_cell(f"{NASTY}.strong", task=NASTY, facts=facts, protocol=NASTY)]
    path = tmp_path / "report.html"
    path.write_text(a_page(made))
    browser.open(path)
    browser.click("tbody td button")
    assert browser.run("document.querySelector('tbody th').textContent") == f"{NASTY}.strong"
    assert NASTY in browser.run("document.querySelector('.opened h4').textContent")
    assert browser.run("document.images.length") == 0
    assert browser.errors == []
