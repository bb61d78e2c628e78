"""The report in a real browser, from the file system, with the network off; and its numbers against the Parquet's."""

import functools
import json
import re
import shlex
import shutil
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from optuna.importance import FanovaImportanceEvaluator
from optuna.samplers import RandomSampler
from optuna.trial import create_trial

import search_spaces
from data_prep.storage import locate
from study.outputs.results import read_results
from study.report import main as report_again
from study.reporting.appendix import cost_section
from study.reporting.overview import headline_section, leaderboard_table
from study.reporting.page import Chart, Section, render
from study.reporting.report import write_report
from study.reporting.running import write_interrupted_report, write_running_report
from study.reporting.searched import knobs_table
from study.reporting.trust import score_chart, selection_in_words, trust_section
from study.run import main
from study.search.ledger import JOURNAL, open_ledger, read_ledger
from study.search.records import KnobRange, SearchedSpace, State, StudyIdentity
from study.training.scoring import LaneResult

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
LARGE = 1000
"""Configurations of a large study."""


@pytest.fixture(scope="module")
def large_study(pva_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study with a ledger of a thousand configurations; running.html is its page before the search ended."""
    folder = tmp_path_factory.mktemp("large") / "pva"
    shutil.copytree(pva_study, folder)
    (folder / JOURNAL).unlink()
    space, sampler = search_spaces.load("pva"), RandomSampler(seed=0)
    assert isinstance(space, search_spaces.Space)
    fields = {k: v for k, v in read_ledger(pva_study).identity.items() if k not in ("knobs", "training")}
    identity = StudyIdentity(**fields, templates=(), ledger=None)
    with open_ledger(folder, space=space, identity=identity) as ledger:
        states: tuple[State, ...] = ("complete", "pruned", "failed")
        for i, state in enumerate(states):
            lane = ledger.ask(space, sampler, index=i, seed=i)
            metrics = {"val_h_mean": 0.5, "val_h_std": 0.01, "val_seen": 0.625, "val_unseen": 0.375, "tau": 0.125}
            curve = [(epoch, 0.123456 * epoch) for epoch in (5, 10, 20)]
            result = LaneResult(state=state, score=0.5, metrics=metrics, curve=curve, epochs=20, train_seconds=1.0)
            ledger.tell(lane, replace(result, error="loss was not finite by epoch 1"))
        kinds, draw = ledger.trials(), np.random.default_rng(0).random
        others = []

        def within(range_: Any, value: Any) -> Any:
            return range_.low + (range_.high - range_.low) * draw() if isinstance(value, float) else value

        for i in range(len(kinds), LARGE):  # what was written for a kind, with other numbers, in one line each
            like, score = kinds[2 if i % 50 == 0 else i % 2], float(draw())
            curve = [[e, score * e / 20] for e in (5, 10, 20)]
            of_trial = {**like.user_attrs["result"], "score": score, "curve": curve}
            of_trial["metrics"] = {k: v * score for k, v in of_trial["metrics"].items()}
            others.append(
                create_trial(
                    state=like.state,
                    value=score if like.value else None,
                    params={k: within(like.distributions[k], v) for k, v in like.params.items()},
                    distributions=like.distributions,
                    user_attrs={**like.user_attrs, "config_index": i, "result": of_trial},
                )
            )
        ledger.study.add_trials(others)
        write_running_report(locate(folder), ledger)
    (folder / "report.html").rename(folder / "running.html")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver on this machine: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "enable-unsafe-swiftshader"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


def show(browser: Any, page: Path, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    deadline = time.monotonic() + 90
    while browser.execute_script("return document.body.dataset.drawn") != "true":
        assert time.monotonic() < deadline, "charts were not drawn"
        time.sleep(0.2)


def column(browser: Any, table: str, heading: str) -> list[str]:
    """Sort values of the rows that are shown."""
    return browser.execute_script(
        "const t = document.getElementById(arguments[0]);"
        "const i = [...t.tHead.rows[0].cells].findIndex(c => c.textContent === arguments[1]);"
        "return [...t.tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[i].dataset.value ?? '')",
        table,
        heading,
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_every_chart_is_drawn_offline_without_an_error(pva_study: Path, browser: Any, width: int) -> None:
    show(browser, pva_study / "report.html", width)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    charts = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].map(c => [c.id,"
        " c.querySelectorAll('svg path, svg image, canvas').length, c.querySelector('svg').clientWidth])"
    )
    assert {"chart-gain", "chart-configurations", "chart-tested", "chart-curves", "chart-honest", "chart-history",
            "chart-curves-of-lanes", "chart-parallel", "chart-slices", "chart-landscape", "chart-errors",
            "chart-seconds"} <= {id_ for id_, _, _ in charts}  # fmt: skip
    assert all(marks > 0 and drawn > 100 for _, marks, drawn in charts), charts
    # nothing but what scrolls by itself is wider than the screen
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    pictures = "return [...document.images].every(i => (i.loading = 'eager') && i.src.startsWith('data:image/webp'))"
    assert browser.execute_script(pictures) and len(browser.find_elements("tag name", "img")) > 10


def test_a_page_runs_its_own_scripts_only() -> None:
    """The policy names each script by its hash; only charts of coordinates need code that is compiled in the page."""
    for figure, compiles in ((go.Figure(go.Bar(y=[1])), False), (go.Figure(go.Parcoords()), True), (None, False)):
        charts = [Chart(id="c", title="t", caption="c", figure=figure)] if figure else []
        page = render("<script>alert(1)</script>", [Section(id="s", title="policy of this page", charts=charts)])
        (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
        directives = {name: values for name, *values in (part.split() for part in policy.split(";"))}
        scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
        assert len(scripts) == (2 if figure else 1) and not any("alert(1)" in script for script in scripts)
        hashes = [f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts]
        assert directives["script-src"] == hashes + ["'unsafe-eval'"] * compiles
        assert directives["default-src"] == ["'none'"] and directives["img-src"] == ["data:"]
        assert ">policy of this page<" in page


def test_a_thousand_configurations_are_a_page_of_under_8_mb(large_study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_trees = functools.partial(FanovaImportanceEvaluator, n_trees=4)  # its usual 64 take 15 s for random scores
    monkeypatch.setattr("optuna.importance.FanovaImportanceEvaluator", few_trees)
    page = Path(write_report(locate(large_study)))
    assert page.stat().st_size < 8_000_000 and (large_study / "running.html").stat().st_size < 6_000_000
    text = page.read_text()
    assert f"{LARGE} configurations of its 11 knobs" in text and 'http-equiv="refresh"' not in text


def test_the_page_of_a_running_search_is_drawn_and_loads_itself_again(large_study: Path, browser: Any) -> None:
    show(browser, large_study / "running.html", 1280)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert not browser.find_element("id", "stale").is_displayed()
    charts = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].map(c => [c.id, c.querySelectorAll('svg path').length])"
    )
    assert [id_ for id_, _ in charts] == ["chart-configurations", "chart-history", "chart-curves-of-lanes"]
    assert all(marks > 100 for _, marks in charts)
    best = max(c.score or 0.0 for c in read_ledger(large_study).finished() if c.state == "complete")
    assert float(column(browser, "best", "score")[0]) == best


def test_a_running_page_whose_driver_is_gone_says_so_and_stops(large_study: Path, browser: Any) -> None:
    later = "const now = Date.now; Date.now = () => now() + 601 * 1000"  # the page itself may not change: its policy
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": later})
    show(browser, large_study / "running.html", 1280)
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    assert browser.find_element("id", "stale").is_displayed()
    assert "this page no longer loads itself again" in browser.find_element("id", "stale").text


def test_an_interrupted_study_s_page_says_so_and_stays(large_study: Path) -> None:
    write_interrupted_report(locate(large_study))
    page = (large_study / "report.html").read_text()
    assert "The study was interrupted" in page and "INTERRUPTED: " in page and "location.reload" not in page


def test_the_table_sorts_and_filters(pva_study: Path, browser: Any) -> None:
    show(browser, pva_study / "report.html", 1280)
    table = pd.read_parquet(pva_study / "leaderboard.parquet")
    heading = browser.find_element("xpath", "//table[@id='rows']//button[text()='U']")
    heading.click()
    falling = table.test_unseen_mean.sort_values(ascending=False).tolist()
    assert [float(v) for v in column(browser, "rows", "U")] == falling
    heading.click()
    assert [float(v) for v in column(browser, "rows", "U")] == falling[::-1]
    browser.find_element("css selector", "input[data-filters=rows]").send_keys("linear probe")
    by_u = table.sort_values("test_unseen_mean", ascending=False, kind="stable").sort_values(
        "test_unseen_mean", kind="stable"
    )
    probes = by_u[by_u.method.str.startswith("Linear probe")].config_id
    assert column(browser, "rows", "configuration") == probes.tolist()


def test_numbers_are_those_of_the_leaderboard(pva_study: Path) -> None:
    results = read_results(locate(pva_study))
    table = pd.read_parquet(pva_study / "leaderboard.parquet")
    shown = leaderboard_table(results)
    names = {"S": "test_seen_mean", "U": "test_unseen_mean", "H": "test_h_mean", "H gain [95 %]": "h_gain",
             "val H": "val_h_mean", "AUSUC": "test_ausuc"}  # fmt: skip
    for heading, name in names.items():
        i = shown.columns.index(heading)
        assert [row[i].value for row in shown.rows] == table[name].tolist()
    selected = table[table.selected & (table.method == "PVA")].iloc[0]
    page = (pva_study / "report.html").read_text()
    assert f"H = {100 * selected.test_h_mean:.2f}" in page and f"{100 * selected.h_gain_lo:+.2f} to" in page
    assert len(page) < 6_000_000 and 'http-equiv="refresh"' not in page


def test_tables_beside_the_leaderboard_agree_with_it(pva_study: Path) -> None:
    rows = pd.read_parquet(pva_study / "leaderboard.parquet")
    predictions = pd.read_parquet(pva_study / "predictions.parquet")
    right = (predictions.label == predictions.predicted).groupby(predictions.config_id).mean()
    for row in rows[rows.selected].itertuples():
        assert right[row.config_id] == pytest.approx(row.test_all_micro, abs=1e-6)
    errors = pd.read_parquet(pva_study / "errors.parquet")
    wrong = errors.groupby("method").images.sum() / len(predictions.key.unique())
    for row in rows[rows.selected].itertuples():
        assert wrong[row.method] == pytest.approx(1 - row.test_all_micro, abs=1e-5)
    own = rows[rows.selected & (rows.method == "PVA")].iloc[0]
    landscape = pd.read_parquet(pva_study / "landscape.parquet")
    curve = pd.read_parquet(pva_study / "curves.parquet").query("method == 'PVA' and seed == 0")
    # a lambda that went through float32 is not quite the grid's
    at_chosen = landscape[np.isclose(landscape.residual_lambda, json.loads(own.params)["residual_lambda"], atol=1e-6)]
    h = 2 * curve.seen * curve.unseen / (curve.seen + curve.unseen)
    assert at_chosen.h.max() == pytest.approx(h.max(), abs=0.02)  # both keep some of the same thresholds


def test_a_rows_command_makes_the_row_again(
    pva_study: Path, embedded_cache: Path, tmp_path: Path, without_tune: None
) -> None:
    results = read_results(locate(pva_study))
    shown = leaderboard_table(results)
    at = shown.columns.index("configuration")
    code = next(row[at].code for row in shown.rows if row[at].text.startswith("linear-probe"))
    program, *arguments = shlex.split(code.splitlines()[0])[1:]
    assert program == "study/run.py"
    cache = ["--cache", str(embedded_cache.parent), "--cpus-per-pack", "2", "--refit-workers", "0"]
    assert main([*arguments, *cache, "--storage", str(tmp_path), "--name", "again"]) == 0
    before = pd.read_parquet(pva_study / "leaderboard.parquet").set_index("config_id")
    after = pd.read_parquet(tmp_path / "again" / "leaderboard.parquet").set_index("config_id")
    id_ = arguments[1].rpartition("/")[2].removesuffix(".json")
    kept = ["method", "test_h_mean", "test_h_std", "test_ausuc", "h_gain", "val_h_mean", "val_criterion", "params"]
    pd.testing.assert_series_equal(after.loc[id_, kept], before.loc[id_, kept])


def test_what_is_rarely_asked_for_waits_for_a_switch_and_names_stay(pva_study: Path, browser: Any) -> None:
    show(browser, pva_study / "report.html", 390)
    visible = (
        "return [...document.getElementById('rows').tHead.rows[0].cells]"
        ".filter(c => getComputedStyle(c).display !== 'none').map(c => c.textContent)"
    )
    brief = browser.execute_script(visible)
    assert brief[:4] == ["rank", "method", "H", "H gain [95 %]"] and "val H" not in brief
    browser.execute_script("document.querySelector('input[data-shows=rows]').click()")
    assert browser.execute_script(visible) == [*brief, "val H", "AUSUC", "known", "unknown", "all", "source"]
    cells = "const c = document.getElementById('rows').tBodies[0].rows[0].cells; "
    browser.execute_script(f"{cells} c[0].closest('.scroll').scrollLeft = 300")
    assert browser.execute_script(f"{cells} return c[1].getBoundingClientRect().left") >= 0  # still on the screen
    assert browser.execute_script(f"{cells} return c[0].getBoundingClientRect().right") < 0


def test_paper_has_the_winners_row_whole(pva_study: Path, browser: Any) -> None:
    show(browser, pva_study / "report.html", 718)  # A4 between its margins
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        right = (
            "[...document.querySelectorAll('#rows tr.strong td:not(.more)')].map(c => c.getBoundingClientRect().right)"
        )
        assert browser.execute_script(f"return Math.max(...{right})") <= 718
        shown = "[...document.querySelectorAll('nav, .tools')].map(e => getComputedStyle(e).display)"
        assert set(browser.execute_script(f"return {shown}")) == {"none"}
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_knobs_without_effect_are_not_chosen() -> None:
    width = KnobRange(scope="static", low=4, high=8, log=False, choices=None, when=("layers", (1, 2)))
    for layers, shown in ((1, "6"), (0, "–")):
        table = knobs_table({"width": width}, {"layers": layers, "width": 6}, {})
        assert table.rows[0][2].text == shown
    of_ledger = {"width": ["static", 4, 8, False, None, ["layers", [1, 2]]]}
    read = SearchedSpace.from_json({"space": "x", "knobs": of_ledger})
    assert read.knobs == {"width": width}


def test_the_score_that_chose_is_drawn_where_it_is_not_h(small_study: Path, pva_study: Path) -> None:
    for folder, ids in ((pva_study, ["chart-honest"]), (small_study, ["chart-honest"])):
        assert [chart.id for chart in trust_section(read_results(locate(folder)), []).charts] == ids  # h; one refit
    results = read_results(locate(small_study))
    own = results.own
    assert own is not None and results.run.criterion == "consensus"
    other = replace(own, config_id="other", val_consensus=0.5, test_h_mean=0.25, selected=False)
    (chart,) = score_chart(replace(results, rows=[*results.rows, other]))
    assert chart.figure.layout.xaxis.title.text == "consensus score x 100"
    assert list(chart.figure.data[0].x) == [100 * (own.val_consensus or 0), 50.0]


def test_an_extended_study_says_how_often_its_test_was_scored(small_study: Path) -> None:
    results = read_results(locate(small_study))
    several = "images were scored 3 times, since the study was extended."
    for scorings, said in ((1, "images were scored once."), (3, several)):
        words = " ".join(selection_in_words(replace(results, run=replace(results.run, scorings=scorings))))
        assert said in words


def test_the_result_says_how_to_use_it_and_how_to_make_it_again(pva_study: Path) -> None:
    commands = list(headline_section(read_results(locate(pva_study))).commands.values())
    assert commands[0] == f"python study/predict.py IMAGES --adapter {pva_study}/adapters/selected"
    assert commands[1].startswith(f"python study/run.py --rerun {pva_study}/configs/pva-")


def test_rerun_of_no_configuration_is_one_clear_line(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert main(["--rerun", str(tmp_path / "x.json")]) == 2
    assert "--rerun must be a file configs/ID.json" in capsys.readouterr().err


def test_the_command_writes_the_report_or_one_clear_line(
    pva_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_again([str(pva_study)]) == 0
    assert capsys.readouterr().out == f"{pva_study / 'report.html'}\n"
    assert report_again([str(tmp_path / "[/none]")]) == 2  # brackets are no markup
    assert capsys.readouterr().err.startswith("error: a finished study must have a leaderboard, there is none: ")


def test_a_study_of_an_older_version_still_has_a_report(pva_study: Path, tmp_path: Path) -> None:
    shutil.copytree(pva_study, tmp_path / "old")
    for name in ("curves", "landscape", "errors", "confusions", "predictions"):
        (tmp_path / "old" / f"{name}.parquet").unlink()
    (tmp_path / "old" / "run.json").write_text("{}")
    shutil.rmtree(tmp_path / "old" / "baselines")
    page = Path(write_report(locate(tmp_path / "old"))).read_text()
    assert "chart-gain" in page and "chart-landscape" not in page


def test_the_page_counts_as_the_study_does(pva_study: Path) -> None:
    results = read_results(locate(pva_study))
    section = cost_section(results)
    assert section is not None
    said = ", ".join(f"{speed:g} ({name})" for name, speed in results.run.configurations_per_minute.items())
    assert list(results.run.configurations_per_minute) == ["pva", "linear-probe"]
    assert (
        f"configurations per minute: {said}" in section.paragraphs[0] and "stopped early" not in section.paragraphs[0]
    )
