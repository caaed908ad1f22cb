"""``python -m lmxexp`` and the command ``lmxexp``: compose a configuration from the command line and run it."""

import os
import sys

from lmxexp.cli import arguments, command, errors
from lmxexp.parallel import launch


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code.

    Args:
        argv: arguments without the program's name; None: those of the process.
    """
    among = launch.launched()
    if among is not None and among.rank != 0:
        from lmxexp.parallel.session import follow

        return follow()
    if among is None:
        return _lead(argv)
    from lmxexp.interfaces import ConfigError
    from lmxexp.parallel.session import lead

    try:
        with lead():
            return _lead(argv)
    except ConfigError as error:  # the others are not there
        errors.report(str(error))
        return 1


def _lead(argv: list[str] | None) -> int:
    typed = sys.argv[1:] if argv is None else argv
    full_argv = [sys.argv[0], *typed]
    before = list(sys.argv)
    hydra_prints = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints what goes wrong, and leaves
    try:
        return _main(typed, full_argv)
    except KeyboardInterrupt:
        print("\nlmxexp: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `lmxexp --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        wanted = errors.traceback_wanted(typed)
        errors.report(errors.describe(error), error if wanted else None)
        return 1
    finally:
        sys.argv[:] = before
        if hydra_prints is None:
            del os.environ["HYDRA_FULL_ERROR"]


def _main(typed: list[str], full_argv: list[str]) -> int:
    command.find_modules_here()
    line = arguments.read(typed)
    if line.has("--version"):
        import lmxexp

        print(f"lmxexp {lmxexp.__version__}")
        return 0
    if line.has("-h", "--help"):
        from lmxexp.cli.help import text

        print(text(line.config_dir))
        return 0
    if line.has("-sc", "--shell-completion"):
        line = arguments.of_completion(line, os.environ.get("COMP_LINE", ""))
    elif line.config_dir is not None:
        _warn_of_shadowed(line)
    return _hydra(line, full_argv)


def _hydra(line: arguments.CommandLine, full_argv: list[str]) -> int:
    import hydra
    from hydra.errors import HydraException

    from lmxexp.cli import resume, run_mode, sweeps
    from lmxexp.cli.conf import conf_dir
    from lmxexp.cli.point import Points
    from lmxexp.compose import CONFIG_NAME, VERSION_BASE, install, started
    from lmxexp.sweep import session

    if line.multirun and launch.launched() is not None:
        errors.refuse(
            "--multirun: mlx.launch gives all its devices to one run; start a sweep without it, with "
            "hydra/launcher=subprocess hydra.launcher.n_jobs=N for N devices"
        )
    install()
    points = Points(full_argv, traceback=errors.traceback_wanted(line.overrides))
    if line.runs and not line.multirun:
        sweeps.refuse_alone(line.overrides)
    line.overrides = sweeps.named(line.overrides)
    if line.runs and resume.asks(line.overrides):
        with started(line.config_dir, line.config_path):
            points.plan = resume.plan(line.overrides)
        if points.plan is not None:
            if line.multirun:
                errors.refuse(f"{points.plan.key}={points.plan.run_dir} continues one run: leave --multirun out")
            line.overrides = points.plan.for_main()
    elif line.runs and line.multirun:
        with started(line.config_dir, line.config_path):
            line.overrides.append(sweeps.directory_names(line.overrides))
    sys.argv[:] = ["lmxexp", *line.argv()]
    session.command(full_argv)
    try:
        with run_mode.told(line):
            hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name=CONFIG_NAME)(points)()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return session.finish() or code
    except Exception as error:
        if session.began() and not errors.is_config_error(error):
            session.finish()  # a sweeper of another project gave up: what came out is told first
            raise
        if points.outcome or errors.is_config_error(error) or not isinstance(error, HydraException | ValueError):
            raise
        with started(line.config_dir, line.config_path) as ours:
            from lmxexp.cli.explain import explain

            name = line.values.get("--config-name", CONFIG_NAME)
            problems = explain(
                error, line.overrides, ours.config_loader, config_name=name, multirun=line.multirun or not line.runs
            )
        if not problems:
            raise
        errors.refuse(problems)
    finally:
        session.stop()
    return session.finish() if session.began() else points.finish()


def _warn_of_shadowed(line: arguments.CommandLine) -> None:
    from lmxexp.cli.conf import shadowed

    assert line.config_dir is not None
    if line.config_dir.is_dir() and (names := shadowed(line.config_dir)):
        print(
            f"lmxexp: warning: --config-dir={line.config_dir}: {', '.join(names)} have the name of a file of ours,"
            " which is the one that is used: give yours another name",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
