"""How the GPUs of one cell share its work. Imports quickly, for the rules."""

from typing import Literal

# "auto" is by objectives where there are enough of them, else by batch.
Share = Literal["auto", "objectives", "batch"]


def splits_batch(share: Share, gpus: int, objectives: int) -> bool:
    """Whether each GPU trains all objectives on a part of the batch.

    Otherwise each trains some of the objectives on whole batches. The choice is never "objectives"
    for more GPUs than objectives; `training.distributed.join_ranks` refuses it.
    """
    return gpus > 1 and (share == "batch" or gpus > objectives)
