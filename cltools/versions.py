"""The version of each stage, raised by hand when the same input would give other results.

Snakemake cannot see edits of package code; these numbers are parameters of its rules, so raising
one runs that stage and all after it again. Edits that change no result leave them alone.
"""

VERSIONS = {
    "prepare": 1,
    "train": 1,
    "embed": 2,
    "measure": 3,
    "plan": 2,
    "collect": 4,
    "plot": 1,
    "surrogate": 1,
    "theory": 2,
    "merge": 2,
    "project": 2,
    "minimise": 1,
    "regularity": 1,
    "claims": 1,
    "report": 2,
}
