"""Write report.html of a finished study: the order of its sections, each from the file that answers its question."""

from collections.abc import Sequence

from data_prep.storage import Storage, join
from study.evaluation.leaderboard import notes
from study.outputs.results import Results, oracles_beside, read_results
from study.reporting.ablation import ablation_section
from study.reporting.appendix import cost_section, provenance_section, rotations_section
from study.reporting.classes import classes_section
from study.reporting.confusions import confusions_section
from study.reporting.landscape import landscape_section
from study.reporting.overview import compare_section, headline_section, leaderboard_section
from study.reporting.page import REPORT, Section, render
from study.reporting.searched import search_section
from study.reporting.seen_unseen import seen_unseen_section
from study.reporting.trust import trust_section


def write_report(storage: Storage, *, beside: Sequence[Storage] = ()) -> str:
    """Write report.html beside the leaderboard and return its path. Raises `UserError` if there is no leaderboard.

    `beside`: ablation or oracle studies to show with the study; oracles of the same task are found without it.
    """
    results = read_results(storage)
    others = [read_results(s) for s in beside] or oracles_beside(storage, results)
    page = render(
        f"{results.run.name}: {results.run.own_method} on {results.benchmark}",
        report_sections(results, others),
        warning=" ".join(notes(results.rows, interrupted=results.interrupted)),
    )
    storage.write(REPORT, page.encode())
    return join(storage.shown, REPORT)


def report_sections(results: Results, others: Sequence[Results] = ()) -> list[Section]:
    """Return the sections for which the study has the files. `others`: ablation or oracle studies shown with it."""
    sections = [
        headline_section(results),
        leaderboard_section(results),
        compare_section(results),
        seen_unseen_section(results),
        trust_section(results, others),
        search_section(results),
        landscape_section(results),
        classes_section(results),
        confusions_section(results),
        *(ablation_section(r) for r in (results, *others) if r.run.is_ablation),
        rotations_section(results),
        cost_section(results),
        provenance_section(results),
    ]
    return [section for section in sections if section]
