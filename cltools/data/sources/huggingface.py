"""Data sets of the Hugging Face hub by name; its own client downloads them to its own cache."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path, PurePosixPath

from cltools.data.encoded import EncodedSource
from cltools.data.sources.parquet import ENDINGS, hidden, read_parquet, split_of
from cltools.data.sources.source import Source, in_words
from cltools.runtime.errors import InputError
from cltools.runtime.faults import disk_fault

log = logging.getLogger("cltools")
# Where the hub keeps a copy, as Parquet files, of data sets that consist of other files.
CONVERTED = "refs/convert/parquet"


def read_huggingface(
    repo: str,
    revision: str | None = None,
    subset: str | None = None,
    size: int | None = None,
    resize: int | None = None,
    encoded: bool = False,
    skip_damaged: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Source | EncodedSource:
    """The Parquet files of a data set on the Hugging Face hub, read by `read_parquet`.

    repo: its name there, as in uoft-cs/cifar10.
    revision: a commit, or a branch or tag, whose commit of today is taken; None is the branch main.
        The log and the provenance say which commit it was.
    subset: the folder of the repository that has the files, where there are several.

    What is in the cache is not downloaded again. In offline mode (HF_HUB_OFFLINE=1), and where
    there is no network, only the cache is used. Whoever may see a private or gated data set has
    logged in with the hub's own command. The other arguments are those of `read_parquet`.

    Raises InputError when the data set or revision is not there, has no files to read, or can
    neither be had from the hub nor from the cache, and as `read_parquet`.
    """
    folder, commit = _download(repo, revision, subset)
    source = read_parquet(
        str(folder), size, resize, encoded, skip_damaged, image_column, label_column,
        test_fraction, seed,
    )  # fmt: skip
    source.provenance["commit"] = commit
    return source


def _download(repo: str, revision: str | None, subset: str | None) -> tuple[Path, str]:
    """The folder with the files of the data set, and the commit that they are of."""
    from huggingface_hub import HfApi, snapshot_download

    with _hub_errors(repo, revision):
        commit = str(
            HfApi().resolve_revision(repo, repo_type="dataset", revision=revision).resolved
        )
        if revision is None:
            log.info(
                "%s: this is commit %s; add `revision: %s` to the config, so that it stays the "
                "same when the data set changes", repo, commit, commit,
            )  # fmt: skip
        elif revision != commit:
            log.info("%s: %s is commit %s", repo, revision, commit)
        names, complete = _names(repo, commit)
        wanted = _wanted(names, repo, subset)
        if not complete:
            _require_test_split(wanted, repo, commit)
        root = snapshot_download(
            repo, repo_type="dataset", revision=commit, allow_patterns=list(map(escape, wanted))
        )
    return Path(root, subset or ""), commit


def _names(repo: str, commit: str) -> tuple[list[str], bool]:
    """The files of a commit, and whether these are known to be all.

    The cache has a list of them if this client downloaded them. Where there is none and the hub
    cannot be reached, the files in the cache may be the data set, or a part of it.
    """
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import (
        CachedRepoTreeNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
    )

    try:
        listed = get_cached_repo_tree(repo, repo_type="dataset", revision=commit)
        return [file.path for file in listed], True
    except CachedRepoTreeNotFoundError:
        pass
    try:
        return HfApi().list_repo_files(repo, repo_type="dataset", revision=commit), True
    except HfHubHTTPError:
        raise
    except Exception as error:  # offline mode, or no network: the client has many errors for it
        try:
            root = Path(
                snapshot_download(repo, repo_type="dataset", revision=commit, local_files_only=True)
            )
        except LocalEntryNotFoundError:
            raise error from None
    return [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()], False


def _wanted(names: list[str], repo: str, subset: str | None) -> list[str]:
    """The Parquet files whose names say their split, of the one subset.

    Raises InputError when there are no such files for train, or those of several subsets.
    """
    parquet = [
        name
        for name in sorted(names)
        if name.lower().endswith(ENDINGS) and not any(map(hidden, name.split("/")))
    ]
    if not parquet:
        raise InputError(
            f"{repo} has no Parquet files: set `revision: {CONVERTED}`, where the hub keeps most "
            "data sets as Parquet files, or download it and use another source"
        )
    subsets = {name: _subset_of(name) for name in parquet}
    if subset is not None:
        parquet = [name for name in parquet if name.startswith(f"{subset}/")]
        if not parquet:
            raise InputError(
                f"{repo} has no folder {subset!r} of Parquet files: set `subset` to one of "
                f"{in_words({*subsets.values()})}"
            )
    splits = {name: split_of(Path(name), _parts(name, subset)) for name in parquet}
    train = [name for name, split in splits.items() if split == "train"]
    if len(several := {subsets[name] for name in train}) > 1:
        raise InputError(f"{repo} has several subsets: set `subset` to one of {in_words(several)}")
    if not train:
        raise InputError(
            f"{repo} has Parquet files ({in_words(parquet[:5])}), but no name of these says that "
            "it is for train: download them, rename those to train on, and use `source: parquet`"
        )
    return [name for name, split in splits.items() if split is not None]


def _parts(name: str, subset: str | None) -> tuple[str, ...]:
    """The folders and the name of a file, below those of the subset."""
    return PurePosixPath(name).relative_to(subset or "").parts


def _subset_of(name: str) -> str:
    """The folder of a file, without folders below it that are named after a split."""
    folder = PurePosixPath(name).parent
    while folder.name and split_of(Path(name), (folder.name,)) is not None:
        folder = folder.parent
    return str(folder)


def _require_test_split(wanted: list[str], repo: str, commit: str) -> None:
    """Refuse train files alone where others may just not have been downloaded."""
    log.warning(
        "%s: the cache does not say which files commit %s has; those that it holds are taken for "
        "all", repo, commit,
    )  # fmt: skip
    if all(split_of(Path(name), tuple(name.split("/"))) == "train" for name in wanted):
        raise InputError(
            f"the cache holds only train files of {repo}, and the hub cannot be asked for others: "
            f"run `{_by_hand(repo, commit)}` where there is a network"
        )


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into an InputError."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/datasets/{repo}"
    try:
        yield
    except InputError:
        raise
    except errors.HFValidationError:
        raise InputError(
            f"repo is {repo!r}: give the name of a data set as on its page, such as uoft-cs/cifar10"
        ) from None
    except errors.GatedRepoError:
        raise InputError(
            f"{repo} is for those who asked for access: ask on {page}, then run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"the hub has no data set {repo} that you may see ({page}): correct `repo` or, if the "
            "data set is private, run `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(
            f"{repo} has no revision {revision!r}: give a commit, branch or tag that {page} lists"
        ) from None
    except Exception as error:  # no network, a broken connection, offline mode, an incomplete cache
        if (fault := disk_fault(error)) is not None:
            raise fault from error
        offline = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else str(error.__cause__ or error).splitlines()[0]
        raise InputError(
            f"{repo} (revision {revision or 'main'}) is not complete in the cache "
            f"{constants.HF_HUB_CACHE}, and the hub cannot be reached ({why}): run "
            f"`{_by_hand(repo, revision)}` where there is a network, with this cache"
        ) from error


def _by_hand(repo: str, revision: str | None) -> str:
    """The hub's own command that downloads a data set."""
    return f"hf download {repo} --repo-type dataset" + (
        f" --revision {revision}" if revision else ""
    )
