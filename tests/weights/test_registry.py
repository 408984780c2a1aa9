"""The registry of weights, reading files that a stranger made, and hashes that are remembered."""

import hashlib
import http.server
import os
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_adm import made_checkpoint
from safetensors.torch import save_file

from adir.backbones.stable_diffusion import StableDiffusionInpaint, StableDiffusionX4
from adir.errors import InputError
from adir.weights import registry as checkpoints
from adir.weights.checkpoint import read_checkpoint
from adir.weights.registry import (
    HubRepository,
    Mirror,
    WeightsFile,
    entry,
    located,
    read_entry,
    registry,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights of this machine are seen."""
    monkeypatch.setenv("ADIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(
        checkpoints.huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub")
    )
    return tmp_path / "cache"


# --- the registry


def test_the_papers_backbones_and_the_metrics_have_entries():
    assert {
        "gd256",
        "gd512",
        "sd_x4",
        "sd_inpaint",
        "sd15_inpaint",
        "musiq_koniq",
        "musiq_ava",
    } <= registry().keys()


@pytest.mark.parametrize("found", registry().values(), ids=lambda e: e.entry)
def test_every_entry_is_pinned_says_where_it_is_from_and_is_described(found, repository):
    assert (repository / "conf" / "weights" / f"{found.entry}.yaml").read_text().startswith("# ")
    if isinstance(found, WeightsFile):
        assert found.mirrors and all(url.startswith("https://") for url in found.mirrors)
        if found.sha256 is None:  # then nothing is fetched
            return
        assert re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", found.sha256)
        if len(found.sha256) == 8:  # all that the publisher gives, in the name
            assert found.sha256 in found.name
    else:
        assert found.mirrors and all(
            re.fullmatch("[0-9a-f]{40}", mirror.revision) for mirror in found.mirrors
        )
        assert all(
            sha256 is None or re.fullmatch("[0-9a-f]{64}", sha256)
            for sha256 in found.weights.values()
        )


def test_the_size_of_gd256_is_its_552_814_086_float32_parameters_and_little_else():
    assert 0 < entry("gd256").size - 4 * 552_814_086 < 200_000


# UNet, VAE and text encoder of each as diffusers and transformers build them from the published
# configurations (benchmarks/speed/made_networks.py has the UNets'), counted on the meta device.
PARAMETERS = {
    "ffhq256": 93_563_910,
    "gd512": 557_973_638,
    "sd_x4": 473_398_020 + 55_325_927 + 340_387_840,
    "sd_inpaint": 865_925_124 + 83_653_863 + 340_387_840,
    "sd15_inpaint": 859_535_364 + 83_653_863 + 123_060_480,
}


@pytest.mark.parametrize("name, parameters", PARAMETERS.items())
def test_the_size_that_is_told_is_4_bytes_a_parameter(name, parameters):
    number, unit = entry(name).size_text.removeprefix("about ").split()
    assert unit == "GB" and float(number) == pytest.approx(4e-9 * parameters, rel=0.02)
    assert f"({entry(name).size_text})" in str(entry(name).missing())


def test_a_file_of_unknown_hash_is_not_fetched_but_taken_where_somebody_put_it(cache):
    found = entry("ffhq256")
    for refused in (found.fetch, lambda: located("ffhq256")):
        with pytest.raises(
            InputError,
            match=r"by hand from https://drive\.google\.com/.*its SHA-256 is not published",
        ):
            refused()
    found.path.parent.mkdir(parents=True)
    found.path.write_bytes(b"anything")
    assert (
        located("ffhq256") == found.path and found.verify() is None and found.unavailable() is None
    )


def test_a_missing_file_is_one_line_with_name_size_mirrors_and_folder(cache):
    with pytest.raises(InputError) as raised:
        located("gd256")
    message = str(raised.value)
    for part in (
        "256x256_diffusion_uncond.pt",
        "2.21 GB",
        "adir weights get gd256",
        str(cache / "weights"),
    ):
        assert part in message
    assert all(url in message for url in entry("gd256").mirrors) and "\n" not in message


def test_a_missing_repository_is_one_line_with_files_mirrors_and_folder(cache):
    with pytest.raises(InputError) as raised:
        located("sd_inpaint")
    for part in (
        "unet/diffusion_pytorch_model.safetensors",
        "sd2-community/",
        "5f74973cbb",
        str(cache / "weights"),
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    "name, family", [("sd_x4", StableDiffusionX4), ("sd_inpaint", StableDiffusionInpaint)]
)
def test_a_repository_has_all_that_its_backbone_reads(name, family):
    found = entry(name)
    assert {Path(file).parent.name for file in (*found.weights, *found.settings)} == {
        "",
        *family.parts,
    }
    assert entry("sd15_inpaint").settings == entry("sd_inpaint").settings


def test_an_unknown_name_lists_the_known():
    with pytest.raises(InputError, match=r"unknown weights 'gd1024'; choose one of .*gd256, gd512"):
        located("gd1024")


def test_a_file_put_by_hand_is_found(cache):
    path = cache / "weights" / "256x256_diffusion_uncond.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    assert located("gd256") == path


def filled(folder: Path, found: HubRepository, content: bytes = b"weights") -> Path:
    for name in (*found.weights, *found.settings):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_repository_is_found_by_hand_and_in_the_hubs_cache_at_its_revision(cache, tmp_path):
    found = entry("sd_x4")
    assert isinstance(found, HubRepository)
    mirror = found.mirrors[0]
    model = tmp_path / "hub" / f"models--{mirror.repository.replace('/', '--')}"
    snapshot = filled(model / "snapshots" / mirror.revision, found)
    assert located("sd_x4") == snapshot
    for name in (*found.weights, *found.settings):  # half a download
        (snapshot / name).rename(tmp_path / "aside")
        with pytest.raises(InputError, match=rf"sd_x4 needs a folder .*; {snapshot} lacks {name}$"):
            located("sd_x4")
        (tmp_path / "aside").rename(snapshot / name)
    (snapshot / "vae" / "config.json").unlink()
    by_hand = filled(cache / "weights" / "sd_x4", found)
    assert located("sd_x4") == by_hand


def test_a_large_file_of_the_hub_must_have_the_hash_that_names_it(tmp_path):
    found = entry("sd_x4")
    assert isinstance(found, HubRepository)
    model = tmp_path / "hub" / f"models--{found.mirrors[0].repository.replace('/', '--')}"
    snapshot = filled(model / "snapshots" / found.mirrors[0].revision, found)
    linked = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    linked.unlink()
    for content, right in ((b"weights", True), (b"other", False)):
        blob = model / "blobs" / "9d2d8b07b9f7ce8c6fd8bbf3ac9d3b2f8d6f0d2f7a5f9f6f1f3ac1a9ea9c4c11"
        blob = blob.with_name(sha256_of(b"weights"))
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        linked.unlink(missing_ok=True)
        linked.symlink_to(blob)
        wrong = found.verify()
        assert (
            wrong is None if right else "unet/diffusion_pytorch_model.safetensors: SHA-256" in wrong
        )
    assert not blob.exists() and list(blob.parent.glob("*.corrupt-*"))


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub(monkeypatch):
    """A server at HF_ENDPOINT:

    `held` repositories have every file, with this content; and the (path, token) it was asked.
    """
    held: dict[str, bytes] = {}
    asked: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            content = held.get("/".join(self.path.split("/")[1:3]))
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        yield held, asked
        server.shutdown()
        thread.join()


def two_mirrors(sha256: str | None) -> HubRepository:
    """As sd_inpaint, from two places: one gone, one good."""
    mirrors = (Mirror("a/gone", "1" * 40), Mirror("c/good", "2" * 40))
    weights = dict.fromkeys(entry("sd_inpaint").weights, sha256)
    return replace(entry("sd_inpaint"), mirrors=mirrors, weights=weights)


def test_a_repository_is_fetched_at_its_revision_from_the_first_mirror_that_has_it(hub):
    held, asked = hub
    held["c/good"] = b"weights"
    folder = two_mirrors(sha256_of(b"weights")).fetch()
    assert two_mirrors(None).path == folder and two_mirrors(None).missing() is None
    expected = entry("sd_inpaint")
    names = [
        *expected.weights,
        *expected.settings,
    ]  # neither half precision nor the single-file checkpoint
    places = [f"/a/gone/resolve/{'1' * 40}", f"/c/good/resolve/{'2' * 40}"]
    assert [path for path, _ in asked] == [f"{place}/{name}" for name in names for place in places]
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == sorted([*names, "sha256.json"])


def test_a_file_that_no_hash_pins_is_held_to_the_one_it_came_with(hub):
    held, _ = hub
    held["c/good"] = b"weights"
    folder = two_mirrors(None).fetch()
    assert two_mirrors(None).verify() is None
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"weighty")
    assert re.match(
        r"vae/diffusion_pytorch_model.safetensors: SHA-256 .* set aside",
        str(two_mirrors(None).verify()),
    )


def test_the_hub_gets_the_users_token_and_no_other_server_does(hub, monkeypatch, tmp_path):
    held, asked = hub
    held["c/good"] = b"weights"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    plain = WeightsFile(
        entry="x",
        name="x.pt",
        size=None,
        sha256=sha256_of(b"weights"),
        licence=None,
        mirrors=("https://huggingface.co/c/good/x.pt",),
    )
    plain.fetch()
    assert asked == [("/c/good/x.pt", "Bearer hf_secret")] and plain.path.read_bytes() == b"weights"
    elsewhere = os.environ["HF_ENDPOINT"].rstrip("/") + "/c/good/y.pt"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    replace(plain, name="y.pt", mirrors=(elsewhere,)).fetch()
    assert asked[1:] == [("/c/good/y.pt", None)]


def test_a_repository_with_other_weights_is_refused_and_one_line_says_why_of_each_mirror(hub):
    held, _ = hub
    held["c/good"] = b"other"
    with pytest.raises(InputError) as raised:
        two_mirrors(sha256_of(b"weights")).fetch()
    message = str(raised.value)
    for part in (
        r"a/gone/\S+ \(HTTP 404 Not Found\)",
        r"c/good/\S+ \(the downloaded file has SHA-256",
        "set aside",
    ):
        assert re.search(part, message)
    assert "\n" not in message and two_mirrors(None).missing() is not None


def test_a_file_with_a_wrong_hash_is_set_aside(cache):
    found = entry("gd256")
    found.path.parent.mkdir(parents=True)
    found.path.write_bytes(b"another file")
    assert re.search(r"SHA-256 .* instead of a37c32fffd316cd4.*set aside", found.verify())
    assert not found.path.exists() and len(list(found.path.parent.glob("*.corrupt-*"))) == 1


def test_nothing_is_fetched_where_that_is_forbidden(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("gd256", "sd_x4"):
        with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
            entry(name).fetch()


@pytest.mark.parametrize(
    "text",
    [
        "file: x.pt\nmirrors: []\nsha: 1",
        "file: x\nmirrors: []\nsize: 1\nlicence: a\nsha256: 12345678",
        "{",
        "name: x",
        "- 1",
    ],
)
def test_an_entry_that_is_none_is_named(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml: not a valid weights entry"):
        read_entry(path)


# --- reading what a stranger made


class Payload:
    """Creates a folder when it is unpickled without care."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch", "torch before 1.6"])
@pytest.mark.parametrize(
    "wrap", [lambda p: p, lambda p: {"input_blocks.0.0.weight": torch.zeros(1), "x": p}]
)
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path, wrap, zipped):
    path, made = tmp_path / "evil.pt", tmp_path / "made"
    torch.save(wrap(Payload(made)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        InputError,
        match=r"evil\.pt: the file is refused, because it is damaged or holds more than tensors",
    ) as raised:
        read_checkpoint(path)
    assert (
        not made.exists()
        and "\n" not in str(raised.value)
        and "weights_only" not in str(raised.value)
    )
    torch.load(path, weights_only=False)  # the payload is a real one
    assert made.is_dir()


@pytest.mark.parametrize(
    "content, words",
    [
        ({"a": torch.zeros(1), "step": 3}, "'step' is a int, not a tensor"),
        ({"a": {"b": torch.zeros(1)}}, "'a' is a dict, not a tensor"),
        ([torch.zeros(1)], "the file holds a list without tensors"),
        ({}, "holds a dict without tensors"),
        (3, "the file holds a int without tensors"),
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=words):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, -1])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_truncated_checkpoint_is_one_line(tmp_path, name, keep):
    path = tmp_path / name
    tensors = {"a": torch.zeros(500), "b": torch.ones(500)}
    save_file(tensors, path) if name.endswith("safetensors") else torch.save(tensors, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep == 0.5 else keep])
    with pytest.raises(InputError, match=rf"{name}: .*damaged.*download the file again") as raised:
        read_checkpoint(path)
    assert "\n" not in str(raised.value)


PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


@pytest.mark.parametrize(
    "content", [b"<html>log in</html>", b"PK\x03\x04 and no more", b"\x80\x04K\x03.", PNG]
)
def test_a_file_of_another_kind_is_one_line(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt: ") as raised:
        read_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(raised.value)
    assert "torch.load" not in str(raised.value)  # torch's advice to switch its check off


@pytest.mark.parametrize("how", ["plain", "old torch", "safetensors", "state_dict", "parallel"])
def test_tensors_come_back_whatever_they_are_wrapped_in(tmp_path, how):
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.arange(3.0)}
    path = tmp_path / ("x.safetensors" if how == "safetensors" else "x.pt")
    if how == "safetensors":
        save_file(tensors, path)
    else:
        content = {"state_dict": tensors} if how == "state_dict" else tensors
        content = (
            {f"module.{name}": t for name, t in tensors.items()} if how == "parallel" else content
        )
        torch.save(content, path, _use_new_zipfile_serialization=how != "old torch")
    found = read_checkpoint(path)
    assert found.keys() == tensors.keys() and all(
        torch.equal(found[name], tensors[name]) for name in tensors
    )


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.pt: no such file"):
        read_checkpoint(tmp_path / "gone.pt")


def test_a_checkpoint_of_the_reference_reads_as_it_was_saved(tmp_path):
    tensors, _ = made_checkpoint()
    torch.save(tensors, tmp_path / "x.pt")
    assert list(read_checkpoint(tmp_path / "x.pt")) == list(tensors)
