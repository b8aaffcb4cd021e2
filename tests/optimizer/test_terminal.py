"""What a terminal and a pipe show of a search, of a front, and what a notebook gets."""

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from optimizer import api, cli
from optimizer.board import Board
from optimizer.progress import LiveView, watching
from optimizer.report.figures import Role, fronts
from optimizer.report.findings import findings
from optimizer.report.growth import growth
from optimizer.spec import from_document
from optimizer.terminal_plot import plot
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe
from storage.records import Failed
from storage.store import Store
from tests.optimizer.report.conftest import MERGES, objectives, rule
from workers.pool import Busy

Known = Callable[..., Store]

WORKERS = [Busy(worker="a:1", doing="trial 41", seconds=2.4), Busy(worker="a:2", doing="idle")]
FAILED = Failed(
    number=99, recipe=Recipe(method="linear", weights={"alpha": (1.0,)}), split="search", reason="it [burnt]"
)


@pytest.fixture
def store(known_study: Known) -> Store:
    return known_study(rule, merges=MERGES, objectives=objectives(at_least=0.85))


@pytest.fixture
def board(store: Store) -> Board:
    spec = from_document(dict(store.study("tiny").spec))
    measured = list(store.measured("tiny").values())
    made = Board(spec, planned=20, measured=measured[:-1], failed=0, workers=lambda: WORKERS)
    made.add(measured[-1])
    return made


def screen(view: LiveView, out: io.StringIO) -> str:
    Console(file=out, width=110, height=45, force_terminal=False).print(view)
    return out.getvalue()


def test_the_board_says_what_the_store_would(board: Board, store: Store) -> None:
    found = findings(store, "tiny")
    assert board.measured == 10
    assert board.hypervolume() == pytest.approx(growth(found.results).values[-1])
    figure = board.figure()
    assert figure is not None
    assert {p.trial for p in figure.points if p.on_front} == {r.trial for r in found.results.front}
    assert {p.label for p in figure.points if p.label} == {r.baseline for r in found.results.baselines}
    assert {p.trial for p in figure.points if p.role is Role.INFEASIBLE} == {
        r.trial for r in found.results.rows if not r.feasible and r.baseline is None
    }


def test_the_live_view_shows_bars_figures_front_and_workers(board: Board) -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, width=110, height=45))
    view.stage("trials", 10, 20)
    assert "10/20" in screen(view, out)
    view.board(board)
    board.add(FAILED)
    view.outcome(FAILED)
    shown = screen(view, out)
    assert "trial 99 failed: it [burnt]" in shown
    assert f"1 failed, 1 running, hypervolume {board.hypervolume():.4g} as measured" in shown
    assert "● on the front" in shown
    assert re.search(r"a:1\s+trial 41\s+2 s", shown)
    assert re.search(r"a:2\s+idle", shown)


def test_a_second_look_is_a_trial_that_covers_no_further_hypervolume(board: Board, store: Store) -> None:
    before = board.hypervolume()
    board.add(replace(store.measured("tiny")[0], number=20, split="further"))
    assert (board.measured, board.hypervolume()) == (11, before)


def test_a_low_terminal_goes_without_the_plot(board: Board) -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, width=110, height=14))
    view.stage("trials", 10, 20)
    view.board(board)
    shown = screen(view, out)
    assert "hypervolume" in shown
    assert "●" not in shown


def test_a_pipe_gets_plain_lines_with_the_same_figures(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    with watching() as watcher:
        watcher.stage("trials", 0, 20)
        watcher.board(board)
        watcher.outcome(FAILED)
        watcher.stage("trials", 20, 20)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "trials: 0 of 20"
    assert lines[1] == "trial 99 failed: it [burnt]"
    assert re.fullmatch(r"trials: 20 of 20, 0 failed, 1 running, hypervolume 0\.1\d+ as measured", lines[2])


def test_the_plot_puts_every_mark_in_its_place(store: Store) -> None:
    figure = fronts(findings(store, "tiny"))[0]
    text = plot(figure, width=100, height=30)
    *lines, meanings = text.plain.splitlines()
    told = [meaning.split(" ", 1) for meaning in meanings.split("   ")]
    letters = {mark: label for mark, label in told if mark.isalpha()}
    assert set(letters.values()) == {r.baseline for r in findings(store, "tiny").results.baselines}
    drawn = [line.partition("| ")[2] for line in lines if "| " in line]
    places = {c: (row, line.index(c)) for row, line in enumerate(drawn) for c in line if c.isalpha() or c == "★"}
    by_name = {letters[c]: place for c, place in places.items() if c in letters}
    assert by_name["alpha"][0] < by_name["base"][0]  # safer is higher
    assert by_name["alpha"][1] < by_name["base"][1]  # and less able to the left
    assert places["★"][0] <= by_name["alpha"][0] + 2
    assert {span.style for span in text.spans} >= {"bright_blue", "bright_green", "bright_yellow"}


def test_the_front_is_drawn_on_demand(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["front", "tiny"]) == 0
    assert "●" not in capsys.readouterr().out
    assert cli.main(["front", "tiny", "--plot"]) == 0
    shown = capsys.readouterr().out
    assert "The front: safety against general" in shown
    assert "● on the front" in shown


def test_a_notebook_gets_the_front_as_a_table_and_as_a_figure(store: Store) -> None:
    study = api.Study("tiny")
    front = study.front()
    assert list(front.index) == [r.trial for r in api.front("tiny").front]
    assert {"safety.mean", "safety.posterior_stderr", "weight.alpha", "on_front"} <= set(front.columns)
    assert front["on_front"].all()
    everything = study.front(everything=True)
    assert list(everything.index) == list(range(10))
    assert everything.loc[0, "baseline"] == "uniform"
    drawing = study.plot()
    assert drawing.axes[0].get_xlabel().startswith("general")


def test_a_study_that_is_not_there_is_said_at_once(store: Store) -> None:
    with pytest.raises(InputError, match="there is no 'other'"):
        api.Study("other")
