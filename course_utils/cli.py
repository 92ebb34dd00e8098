"""The `course` command. Every import of weight waits inside the command that needs it."""

from __future__ import annotations

import sys

import click


class UserMessage(click.ClickException):
    """A wrong name or a missing piece: one sentence on standard error, exit status 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        click.echo(f"course: {self.message}", err=True)


class Commands(click.Group):
    """Commands in the order a user meets them; the course's own errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        from course_utils.runner.notebooks import UsageError

        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise UserMessage(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llms-measured")
def main() -> None:
    """LLMs, Measured: fetch, run, record and check the notebooks of the course.

    A NOTEBOOK is named by its number (09), its name (09_decoding) or a path; none means all.
    """


@main.command()
@click.argument("notebooks", nargs=-1, metavar="[NOTEBOOK]...")
@click.option("--profile", default="cpu", show_default=True, help="cpu (a laptop) or gpu.")
@click.option(
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Set a parameter, in each notebook that declares it.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Notebooks at once; they share the cores.",
)
@click.option(
    "--out", metavar="DIR", help="Output folder or s3:// address.  [default: runs/PROFILE]"
)
@click.option("--resume", is_flag=True, help="Keep finished outputs that are still valid.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Limit for one notebook.  [default: 1800 on cpu, 21600 on gpu]",
)
def run(
    notebooks: tuple[str, ...],
    profile: str,
    parameters: tuple[tuple[str, str], ...],
    jobs: int,
    out: str | None,
    resume: bool,
    timeout: float | None,
) -> None:
    """Execute notebooks; keep outputs, claims.json and report.html.

    Exit status 1 when a notebook failed, 2 for a wrong name, 130 after Ctrl-C.
    """
    from course_utils.runner.notebooks import parse_value
    from course_utils.runner.run import run as run_notebooks

    status = run_notebooks(
        notebooks,
        profile=profile,
        parameters={name: parse_value(value) for name, value in parameters},
        jobs=jobs,
        out=out,
        resume=resume,
        timeout=timeout,
    )
    sys.exit(status)


@main.command()
@click.argument("notebooks", nargs=-1, metavar="[NOTEBOOK]...")
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Notebooks at once."
)
def check(notebooks: tuple[str, ...], jobs: int) -> None:
    """Compare every committed output with a fresh run (nbval)."""
    from course_utils.runner.guard import check as check_notebooks

    sys.exit(check_notebooks(notebooks, jobs=jobs))


@main.command()
@click.argument("notebooks", nargs=-1, metavar="[NOTEBOOK]...")
def record(notebooks: tuple[str, ...]) -> None:
    """Execute notebooks on the CPU and store their outputs to be committed."""
    from course_utils.runner.record import record as record_notebooks

    sys.exit(record_notebooks(notebooks))


if __name__ == "__main__":
    main()
