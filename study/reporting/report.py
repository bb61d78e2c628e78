"""Write report.html, of a finished study or of one that runs."""

from collections.abc import Sequence

from data_prep.storage import Storage, join
from study.evaluation.leaderboard import ORACLE, ORACLE_NOTE
from study.outputs.results import Results, is_ablation, oracles_beside, read_results
from study.reporting.ablation import ablation_section
from study.reporting.appendix import cost_section, provenance_section, rotations_section
from study.reporting.confusions import confusions_section
from study.reporting.overview import headline_section, leaderboard_table
from study.reporting.page import Section, render
from study.reporting.searched import REFRESH_S, running_sections, search_section
from study.reporting.seen_unseen import landscape_section, seen_unseen_section
from study.reporting.trust import trust_section
from study.search.ledger import Ledger

REPORT = "report.html"


def write_report(storage: Storage, *, ledger: Ledger | None = None, beside: Sequence[Storage] = ()) -> str:
    """Write report.html beside the leaderboard; returns its path. `beside`: an oracle's or ablation's folder.

    `ledger`: of the search that is running; the report then says so, and loads itself again.
    """
    if ledger:
        page = render(f"{ledger.folder.name} (running)", running_sections(ledger), refresh_s=REFRESH_S)
    else:
        results = read_results(storage)
        others = [read_results(s) for s in beside] or oracles_beside(storage, results)
        oracle = any(r.select == ORACLE for r in results.rows)
        page = render(
            f"{results.name}: {results.searched} on {results.benchmark}",
            finished_sections(results, others),
            warning=ORACLE_NOTE if oracle else "",
        )
    storage.write(REPORT, page.encode())
    return join(storage.shown, REPORT)


# --- sections -------------------------------------------------------------------------------------------------------


def finished_sections(results: Results, others: Sequence[Results] = ()) -> list[Section]:
    """All sections for which the study has what they need."""
    ablations = [r for r in (results, *others) if is_ablation(r)]
    sections = [
        headline_section(results),
        Section(
            id="leaderboard",
            title="Leaderboard",
            paragraphs=[
                "S and U are mean accuracies per seen and unseen class on the test images, H = 2SU / (S + U), all in "
                "per cent; ± is the deviation over seeds (of val H, over folds). Gains are over zero-shot CLIP, with "
                "95 % intervals from resampling test images in pairs. val H is what the folds of seen classes gave. "
                "Click a heading to sort, a configuration to see its values and the command that makes its row again."
            ],
            tables=[leaderboard_table(results)],
        ),
        seen_unseen_section(results),
        trust_section(results, others),
        search_section(results),
        landscape_section(results),
        confusions_section(results),
        *(ablation_section(a) for a in ablations),
        rotations_section(results),
        cost_section(results),
        provenance_section(results),
    ]
    return [s for s in sections if s]
