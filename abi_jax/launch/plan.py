"""What a target is asked to run: files made from the templates in launch/, and one command."""

import json
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from abi_jax.launch.job import Job


@dataclass(frozen=True)
class Plan:
    """Files by name, and the command that is run among them. needs: the program that must be installed."""

    files: dict[str, str]
    command: tuple[str, ...]
    needs: str = ""

    def write(self, folder: Path) -> None:
        """Writes the files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")


def render(template: str, job: Job, **more: Any) -> str:
    """Returns the template `launch/<template>` filled in for `job`. Filters: `quote` for a shell, `json` for YAML."""
    text: str = _environment().get_template(template).render(job=job, launch=job.launch, **more)
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
    environment.filters["json"] = lambda value: json.dumps(str(value))
    return environment
