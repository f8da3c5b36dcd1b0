# The workflow is in workflow/Snakefile.
include: "workflow/Snakefile"


# The target of an included file is otherwise no target of this one.
workflow.default_target = "all"
