"""Tables, goals and kept results, from samples that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import results_file
from tests.bench.__main__ import ALL, main, named_trees
from tests.bench.facts import Facts
from tests.bench.goals import GOALS, goal_table
from tests.bench.proxies import PEERS
from tests.bench.report import Results
from tests.bench.scenario import Measurement, Sample

FACTS = Facts("2026-01-01", "2 CPUs", "Debian", "abc", {"Python": "3.11"}, "control groups", (2, 1))


def sample(target: str, cpu: float, number: int = 0, scenario: str = "sessions", lost: int = 0) -> Sample:
    figures = next(one for one in ALL if one.name == scenario).figures
    return Sample(scenario, target, number, Measurement(dict.fromkeys((f.name for f in figures), cpu), lost, lost // 2))


def results(*samples: Sample) -> Results:
    return Results(ALL, ["popproxy", "nginx", "haproxy"], samples)


def test_ratios_are_made_inside_a_round() -> None:
    found = results(
        sample("popproxy", 100, 0), sample("nginx", 200, 0), sample("popproxy", 300, 1), sample("nginx", 200, 1),
        sample("nginx", 1, 2),
    )  # fmt: skip
    assert found.ratios("sessions", "CPU", "popproxy", "nginx") == [0.5, 1.5]
    assert "| sessions, CPU | 1.00 (0.50-1.50) |       - |" in found.ratio_table("popproxy")


def test_goals_are_met_or_missed_by_the_median() -> None:
    found = goal_table(results(sample("popproxy", 100), sample("nginx", 120), sample("haproxy", 80)), "popproxy")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines()[2:]]
    assert ["sessions, CPU", "0.90 x nginx", "0.83", "met"] in lines
    assert ["sessions, CPU", "1.20 x haproxy", "1.25", "MISSED"] in lines
    assert ["sessions lost, altered", "0, 0", "0, 0", "met"] in lines
    assert len(lines) == 3


def test_a_goal_for_a_figure_needs_no_other_proxy() -> None:
    assert "3.30 kB/session" in goal_table(results(sample("popproxy", 3.2, scenario="idle")), "popproxy")


def test_each_goal_is_about_a_scenario_and_a_proxy_that_exist() -> None:
    assert {goal.scenario for goal in GOALS} <= {scenario.name for scenario in ALL}
    assert {goal.other for goal in GOALS} - {""} <= set(PEERS)


def test_lost_and_altered_sessions_and_missing_measurements_are_told() -> None:
    found = results(sample("popproxy", 1, lost=4), sample("nginx", 1), Sample("bulk", "nginx", 0, None, "gone"))
    assert found.losses() == (
        "sessions lost: popproxy 4; sessions with altered octets: popproxy 2; "
        "measurements missing: bulk at nginx: gone\n"
    )
    assert "| MISSED |" in goal_table(found, "popproxy")


def test_kept_results_are_printed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [sample("popproxy", 100), sample("nginx", 200), Sample("bulk", "nginx", 0, None, "gone")]
    results_file.save(tmp_path / "run.json", FACTS, ["popproxy", "nginx"], samples)
    assert results_file.load(tmp_path / "run.json") == (FACTS, ["popproxy", "nginx"], samples)
    assert main(["--from", str(tmp_path / "run.json"), "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("2026-01-01, 2 CPUs, Debian; Python 3.11; popproxy at abc.")
    assert "| sessions, CPU |  0.50 |" in shown
    assert "whole short sessions" not in shown
    assert main(["--from", str(tmp_path / "run.json")]) == 0
    assert "whole short sessions" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", '{"facts": {}}'])
def test_a_file_that_is_no_result_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert main(["--from", str(tmp_path / "run.json")]) == 1
    assert capsys.readouterr().err


def test_checkouts_are_named_like_their_directories(tmp_path: Path) -> None:
    one, other, same = tmp_path / "one", tmp_path / "other", tmp_path / "x" / "one"
    assert named_trees([one]) == {"popproxy": one}
    assert named_trees([one, other, same]) == {"popproxy(one)": one, "popproxy(other)": other, "popproxy(2-one)": same}


def test_an_unknown_scenario_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--scenarios", "sessions,sesions"])
    assert "sesions: choose from sessions, " in capsys.readouterr().err
