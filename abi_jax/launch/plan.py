"""What a target is asked to run: files made from the templates in launch/, and one command."""

import math
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from abi_jax.config import RESERVED_ENV
from abi_jax.launch.job import Job

_RESERVED = "|".join(sorted(RESERVED_ENV))
_FORGET_KEYS = f'for abi_key in "${{!ABI_@}}"; do case "$abi_key" in {_RESERVED}) ;; *) unset "$abi_key" ;; esac; done'


@dataclass(frozen=True)
class Plan:
    """Files by name, and the command that is run among them. needs: the program that must be installed."""

    files: dict[str, str]
    command: tuple[str, ...]
    needs: str = ""

    def write(self, folder: Path) -> None:
        """Writes the files into `folder`, for nobody else to read: `env` is in them."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            path = folder / name
            path.touch(mode=0o600)
            path.chmod(0o600)
            path.write_text(text, encoding="utf-8")


def render(template: str, job: Job, **more: Any) -> str:
    """Returns the template `launch/<template>` filled in for `job`.

    Filters: `quote` for a shell, `yaml` for a text in YAML, `literal` for what Kubernetes would expand. `forget_keys`
    is a line of shell that leaves no key of the training configuration in the environment, which would override it.
    """
    known = {"job": job, "launch": job.launch, "forget_keys": _FORGET_KEYS}
    text: str = _environment().get_template(template).render(known | more)
    return text


@cache
def _environment() -> jinja2.Environment:
    package = Path(__file__).resolve().parent.parent
    # An installed wheel carries `_launch`; a source checkout has `launch` beside the package.
    folder = package / "_launch" if (package / "_launch").is_dir() else package.parent / "launch"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    environment.filters["yaml"] = _yaml
    environment.filters["literal"] = lambda value: str(value).replace("$", "$$")
    return environment


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(str(value), default_style='"', width=math.inf, allow_unicode=True)
    return text.rstrip("\n")
