"""Data sets of the Hugging Face hub, by a server on this machine that answers as the hub does."""

import hashlib
import io
import json
import logging
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import numpy as np
import polars as pl
import pytest
import yaml
from commands import planned
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from PIL import Image
from small import small_config

from cltools.cluster.images import KNOWN, images_of_set
from cltools.data.store import ImageStore
from cltools.runtime.errors import InputError
from cltools.stages import prepare

REPO = "lab/images"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEFINITION = {"source": "huggingface", "repo": REPO}
RNG = np.random.default_rng(0)


def parquet(labels):
    """The bytes of a Parquet file with an image of random colors for each label."""
    images = []
    for _ in labels:
        image = io.BytesIO()
        Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(image, "PNG")
        images.append({"bytes": image.getvalue(), "path": None})
    written = io.BytesIO()
    pl.DataFrame({"img": images, "label": labels}).write_parquet(written)
    return written.getvalue()


FILES = {
    "README.md": b"# Images",
    "plain_text/train-00000-of-00002.parquet": parquet([0, 1]),
    "plain_text/train-00001-of-00002.parquet": parquet([1, 0]),
    "plain_text/test-00000-of-00001.parquet": parquet([1, 0]),
    "plain_text/extra-00000-of-00001.parquet": parquet([1]),
}


class Hub(BaseHTTPRequestHandler):
    """The answers of the hub that its client needs; `server.files` are those of the data set."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        kind, *parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        owner, repo, *rest = parts[1:] if kind == "api" else parts
        what, revision, *name = rest or ("revision", "main")
        repo, name = f"{owner}/{repo}", "/".join(name)
        if repo != REPO:
            return self._answer(404, b"", {"X-Error-Code": self.server.refusal})
        if revision not in ("main", COMMIT):
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = self.server.files
        if what == "revision":
            return self._answer(200, json.dumps({"id": REPO, "sha": COMMIT}).encode())
        if what == "tree":
            listed = [{"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                      for path, content in files.items()]  # fmt: skip
            return self._answer(200, json.dumps(listed).encode())
        tag = hashlib.sha256(files[name]).hexdigest()
        return self._answer(200, files[name], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _answer(self, status, content, headers=None):
        self.send_response(status)
        about = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in {**about, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The server, as the hub of the client, whose cache is an empty folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked, server.refusal = dict(FILES), [], "RepoNotFound"
    server.cache = tmp_path / "cache"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    reach(monkeypatch, address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(server.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def reach(monkeypatch, address):
    close_session()
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def prepared(definition, folder):
    prepare.run(name="images", definition=definition, store=folder)
    return ImageStore.open(folder)


def refused(definition, folder, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        prepare.run(name="images", definition=definition, store=folder / "refused")
    assert "\n" not in str(caught.value)
    assert not (folder / "refused").exists()


def in_cache(hub, names, commit=COMMIT):
    """Put files into the cache in the hub's layout, as older clients do: without a list of them."""
    folder = hub.cache / f"datasets--{REPO.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for name in names:
        file = folder / "snapshots" / commit / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(FILES[name])


def test_the_store_is_that_of_the_same_files_on_disk(hub, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cltools")
    store = prepared({**DEFINITION, "revision": "main"}, tmp_path / "named")
    assert f"{REPO}: main is commit {COMMIT}" in caplog.messages
    for name, content in FILES.items():
        file = tmp_path / "local" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    local = prepared({"source": "parquet", "path": str(tmp_path / "local")}, tmp_path / "by_path")
    assert len(store.labels["train"]) == 4
    assert store.content == local.content
    arrays = [sorted(folder.glob("*.npy")) for folder in (store.folder, local.folder)]
    assert [file.read_bytes() for file in arrays[0]] == [file.read_bytes() for file in arrays[1]]
    del local.provenance["path"]
    named = {**DEFINITION, "revision": "main", "commit": COMMIT}
    assert store.provenance == {**local.provenance, **named}


def test_what_is_in_the_cache_is_not_asked_for_again(hub, tmp_path, monkeypatch):
    online = prepared({**DEFINITION, "revision": COMMIT}, tmp_path / "online")
    assert not [path for path in hub.asked if "extra" in path or "README" in path]
    hub.asked.clear()
    prepared({**DEFINITION, "revision": COMMIT}, tmp_path / "again")
    assert not hub.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = prepared({**DEFINITION, "revision": COMMIT}, tmp_path / "offline")
    manifests = [store.folder / "store.json" for store in (online, offline)]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()
    assert not hub.asked


def test_a_config_without_a_revision_is_told_which_commit_it_got(hub, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cltools")
    store = prepared(DEFINITION, tmp_path / "store")
    assert store.provenance["commit"] == COMMIT
    assert [m for m in caplog.messages if f"add `revision: {COMMIT}` to the config" in m]


def test_what_the_hub_does_not_have_is_refused(hub, tmp_path):
    refused({**DEFINITION, "repo": "lab/image"}, tmp_path, "the hub has no data set lab/image")
    refused({**DEFINITION, "revision": "v9"}, tmp_path, "lab/images has no revision 'v9'")
    refused({**DEFINITION, "revision": "f" * 40}, tmp_path, "has no revision 'ffff")
    refused({**DEFINITION, "repo": "a b"}, tmp_path, "repo is 'a b': give the name of a data set")
    hub.refusal = "GatedRepo"
    refused({**DEFINITION, "repo": "lab/gated"}, tmp_path, "asked for access: ask on http")


def test_files_are_chosen_before_any_is_downloaded(hub, tmp_path):
    more = {name.replace("plain_text", "large"): content for name, content in FILES.items()}
    hub.files.update(more)
    refused(DEFINITION, tmp_path, "several subsets: set `subset` to one of large, plain_text")
    refused({**DEFINITION, "subset": "small"}, tmp_path, "no folder 'small' of Parquet files")
    refused({**DEFINITION, "subset": "../large"}, tmp_path, "no folder '../large'")
    assert not [path for path in hub.asked if "/resolve/" in path]
    store = prepared({**DEFINITION, "subset": "large"}, tmp_path / "store")
    assert "train-00001-of-00002.parquet" in store.provenance["files"]
    assert not [path for path in hub.asked if "plain_text" in path]


def test_other_files_are_named(hub, tmp_path):
    hub.files = {"README.md": b"", "data.tar": b""}
    refused(DEFINITION, tmp_path, "has no Parquet files: set `revision: refs/convert/parquet`")


def test_names_of_other_files_do_not_count(hub, tmp_path):
    hub.files = {name.replace("train", "left"): content for name, content in FILES.items()}
    refused(DEFINITION, tmp_path, "no name of these says that it is for train")


@pytest.mark.parametrize("offline", [True, False], ids=["offline mode", "no network"])
def test_without_the_hub_the_cache_is_used(offline, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client tries several times
    reach(monkeypatch, "http://127.0.0.1:9")
    why = "HF_HUB_OFFLINE is set" if offline else ".*Connection refused"
    for revision in ({}, {"revision": COMMIT}):
        refused({**DEFINITION, **revision}, tmp_path, rf"not complete in the cache .*\({why}\)")
    in_cache(hub, [name for name in FILES if "train" in name])
    refused(DEFINITION, tmp_path, "the cache holds only train files of lab/images")
    shutil.rmtree(hub.cache)
    in_cache(hub, FILES)
    assert prepared(DEFINITION, tmp_path / "store").provenance["commit"] == COMMIT


def test_a_download_that_was_cut_short_is_not_taken_for_the_data_set(hub, tmp_path, monkeypatch):
    prepared(DEFINITION, tmp_path / "store")
    (test,) = hub.cache.rglob("test-*.parquet")
    test.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(DEFINITION, tmp_path, r"not complete in the cache .* run `hf download lab/images")


def test_planning_asks_the_hub_for_nothing(hub, tmp_path):
    config = yaml.safe_load(small_config())
    config["datasets"]["digits"] = {**DEFINITION, "recipe": "cifar"}
    assert planned(tmp_path, config)["prepare"] == 1
    assert not hub.asked
    cifar10 = {"source": "huggingface", "repo": "uoft-cs/cifar10"}
    assert images_of_set(cifar10, tmp_path / "none") == KNOWN["CIFAR10"]
