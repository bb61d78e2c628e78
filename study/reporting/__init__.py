"""What people see: the report of a study, and the comparison of studies.

The page from top to bottom, and the file behind each part:

    overview.py      what was reached, and the leaderboard
    seen_unseen.py   what is gained on seen classes, and what on unseen ones
    trust.py         whether the choice can be trusted
    searched.py      what was searched, and what mattered
    landscape.py     how much the choice of tau and lambda matters
    confusions.py    what is confused
    ablation.py      what each part does
    appendix.py      rotation by rotation, cost, provenance

report.py puts the parts in this order; running.py is the page while the search runs, comparison.py that of several
studies. page.py turns sections into HTML, style.py holds colours and shapes that charts share.
"""
