"""What a model directory's steps were made from: its chain, and a record of every link's tensors and files.

    lineage/chain.jsonl     the links
    lineage/<number>.json   what link <number> stands for: digests of tensors, seals of files, configuration, position
    lineage/writing         held by a run that is going on

A record holds what its link's hashes are of, so that damage to either is found. It outlives the weights.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax

from abi_jax import __version__
from abi_jax.config import dump_yaml
from abi_jax.errors import InputError
from abi_jax.files import sync_folder, write_atomically
from abi_jax.lineage import Chain, Link
from abi_jax.lineage_digest import TensorDigest, canonical, content_root, digest_tree, sha256
from abi_jax.lineage_seal import seal_files, seal_root
from abi_jax.model.config import ModelConfig
from abi_jax.model.directory import PARAMS, POSITION, ModelDirectory, check_new
from abi_jax.model.weight import Tree
from abi_jax.persona import Persona
from abi_jax.text.tokenizer import Tokenizer

ORIGIN = "origin"  # an item of a step that is JSON: what it was made with


@dataclass(frozen=True)
class Record:
    """What a link stands for. tensors by path, `params/...` and `optimizer/...`; files: seals by path."""

    step: int
    tensors: Mapping[str, TensorDigest]
    files: Mapping[str, str]
    config: Any
    position: Any

    def text(self) -> str:
        """The record as a JSON file."""
        tensors = {name: [t.dtype, list(t.shape), t.digest] for name, t in self.tensors.items()}
        return canonical({**vars(self), "tensors": tensors, "files": dict(self.files)}).decode() + "\n"

    @classmethod
    def parse(cls, data: bytes) -> "Record":
        """Reads what `text` returned, as bytes of a file. Raises `ValueError` where it is anything else."""
        try:
            value = json.loads(data)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        tensors = {name: TensorDigest(dtype, tuple(shape), d) for name, (dtype, shape, d) in value["tensors"].items()}
        record = cls(**{**value, "tensors": tensors})
        if record.text().encode() != data:
            raise ValueError("not the canonical text of a record")
        return record

    def link(self, parents: tuple[str, ...] = ()) -> Link:
        """The link that stands for this record."""
        return Link(
            kind="model",
            step=self.step,
            content=content_root(self.tensors),
            seal=seal_root(self.files),
            config=sha256("config", canonical(self.config)).hex(),
            position=sha256("position", canonical(self.position)).hex(),
            code=code(),
            parents=parents,
        )

    def answers(self, link: Link) -> bool:
        """Whether this is the record that `link` stands for."""
        own = self.link()
        return (own.step, own.content, own.seal, own.config, own.position) == (
            link.step,
            link.content,
            link.seal,
            link.config,
            link.position,
        )


@cache
def code() -> str:
    """The versions of this program and of JAX; the program's has a digest of its sources, as they are when asked."""
    package = Path(__file__).resolve().parents[1]
    sources = seal_root(seal_files(package, package.rglob("*.py")))
    return f"abi-jax {__version__}, sources {sources[:16]}, jax {jax.__version__}"


def named(item: str, tree: Any) -> dict[str, Any]:
    """The arrays of a tree by the names they have in a record: `item/path.of.names`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    found = {f"{item}/{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf for path, leaf in leaves}
    assert len(found) == len(leaves), "two paths have one name"
    return found


def write_model(
    path: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    personas: Sequence[Persona],
    params: Tree,
    made_from: Mapping[str, str],
) -> ModelDirectory:
    """Writes a whole directory with `params` as step 0 and their link, under another name until it is complete.

    made_from: seals of the files that the weights were read from. Called in one process.
    """
    check_new(path)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    made = ModelDirectory.create(partial, config, tokenizer, personas)
    made.save_params(0, params)
    Provenance(partial).add(0, digest_tree(named(PARAMS, params)), dump_yaml(config), {"made_from": dict(made_from)})
    partial.rename(path)
    return ModelDirectory(path)


class Provenance:
    """The lineage of one model directory."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.chain = Chain(self.path / "lineage" / "chain.jsonl")
        self.writing = self.path / "lineage" / "writing"
        code()  # what is running, whatever is edited until the first link

    def steps(self) -> dict[int, int]:
        """The steps that are there, whole and linked: the number of the last link of each.

        A step that was saved again, and not linked since, is not among them.
        """
        whole = set(ModelDirectory(self.path).steps())
        last = {link.step: number for number, link in enumerate(self.chain.links(), 1) if link.step in whole}
        return {step: number for step, number in last.items() if not self._saved_again(step, number)}

    def unlinked(self) -> list[int]:
        """The steps that are there but that no link stands for: saving them was interrupted at the end."""
        return sorted(set(ModelDirectory(self.path).steps()) - set(self.steps()))

    def newest(self, selected: bool = False) -> tuple[int | None, str]:
        """The newest step that is whole and linked, and its link's hash; None and nothing where there is none.

        selected: the step that is spoken with (see `ModelDirectory.selected_step`), where it is linked.
        """
        steps = self.steps()
        chosen = ModelDirectory(self.path).selected_step() if selected else None
        step = chosen if chosen in steps else max(steps, default=None)
        return (None, "") if step is None else (step, self.chain.links()[steps[step] - 1].hash)

    def _saved_again(self, step: int, number: int) -> bool:
        """Whether the metadata of a step, which say when it was saved, are not those of its link's record."""
        name = f"checkpoints/{step}/_CHECKPOINT_METADATA"
        try:
            sealed = json.loads(self.record_path(number).read_bytes())["files"][name]
            return seal_files(self.path, [self.path / name])[name] != sealed
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False  # damaged, which is not for this to say

    def record_path(self, number: int) -> Path:
        """Where the record of link `number` is."""
        return self.path / "lineage" / f"{number}.json"

    def record(self, number: int) -> Record:
        """The record of link `number`. Raises `InputError` where it is missing or does not answer its link."""
        path = self.record_path(number)
        try:
            record = Record.parse(path.read_bytes())
            right = record.answers(self.chain.links()[number - 1])
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; expected the record of link {number}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            right = False
        if not right:
            raise InputError(f"{path} is not what link {number} of {self.chain.path} stands for: one was changed")
        return record

    def adopt(self, step: int) -> Link:
        """Appends the link of a step that was written whole, but not linked before its run was killed.

        It is of what the files hold, digests and all. Raises `InputError` where they cannot be read.
        """
        directory = ModelDirectory(self.path)
        tensors: dict[str, TensorDigest] = {}
        try:
            for name in directory.tensor_names(step):
                tensors |= digest_tree({name: directory.read_tensor(step, name)})
            position, origin = (directory.read_json(step, item) for item in (POSITION, ORIGIN))
            config, parents = origin["config"], tuple(origin["parents"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"step {step} of {str(self.path)!r} has no link and cannot be read ({error}); remove "
                f"checkpoints/{step} to go on from the step before it"
            ) from None
        return self.add(step, tensors, config, position, parents)

    def add(
        self,
        step: int,
        tensors: Mapping[str, TensorDigest],
        config: Any,
        position: Any,
        parents: tuple[str, ...] = (),
    ) -> Link:
        """Seals the files of a step that is written, and appends its link."""
        sync_folder(ModelDirectory(self.path).checkpoints)
        files = seal_files(self.path, self.files(step))
        record = Record(step, tensors, files, config, position)
        number = len(self.chain.links()) + 1
        self.record_path(number).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.record_path(number), record.text())
        return self.chain.append(record.link(parents))

    def files(self, step: int) -> list[Path]:
        """What makes up a step: its own files, and those of the directory that all steps share."""
        directory = ModelDirectory(self.path)
        shared = [self.path / "model.yaml", self.path / "personas.yaml", self.path / "train.yaml"]
        folders = (self.path / "tokenizer", directory.checkpoints / str(step))
        found = [Path(at, name) for folder in folders for at, _, names in os.walk(folder) for name in names]
        return [*(f for f in shared if f.is_file()), *found]
