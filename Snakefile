# From a config to figures: prepare -> train -> embed -> measure -> theory -> plot.
#
#   results/stores/<data set>-<hash>/   images, once per data set
#   results/cells/<cell>-<hash>/        weights, log and measures of one cell, shared by experiments
#   results/<experiment>/               tables and figures of one experiment
#
# `snakemake --cores 2` runs the default experiment, `--configfile FILE` another one.

import shlex

from snakemake.utils import min_version

min_version("9.0")


# A --configfile stands alone: this one is not merged into it.
if not workflow.configfiles:

    configfile: "config/config.yaml"


# A scheduler sends its signals to all processes of a job. Without a trap, the shell would end at once
# and the scheduler would end the job, while training still saves its state.
LOGGED = shlex.quote(f"{workflow.basedir}/workflow/logged.sh")
shell.prefix(f"set -euo pipefail; trap : TERM USR1 HUP; source {LOGGED}; ")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/simulate.smk"
include: "workflow/rules/plot.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        experiment_targets(),
