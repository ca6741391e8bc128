"""The process in which chat templates are rendered: `python -I chat_worker.py PATH SECONDS BYTES`, by chat_process.

A chat template is a program that comes with a model, from strangers. Jinja's sandbox keeps it from the attributes that
lead to Python itself; the limits of a process do what no sandbox inside can: end a loop, refuse memory, open no file.

It speaks JSON, a line each way. First comes its own {"ready": ...}. Then for each {"template", "variables"} it answers
{"text"}, or {"error"} with what the template did wrong. A template that takes too long ends the process by a signal.
"""

import json
import resource
import signal
import sys
from datetime import datetime

LONGEST_TEXT = 2**24  # characters: far more than any model reads
LONGEST_ERROR = 1000


def main(import_path: str, seconds: str, memory: str) -> None:
    sys.path[:] = json.loads(import_path)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that asked
    try:
        environment = sandbox()
    except ImportError as error:
        answer({"error": f"chat templates need Jinja: pip install jinja2 ({error})"})
        return
    # Whatever is loaded at first use has to be here now: from here on no file can be opened.
    environment.from_string("{{ strftime_now('%Y') ~ 'text' }}").render()
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer({"ready": True})
    compiled: dict = {}
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, float(seconds))  # of this process's own time; SIGPROF then ends it
        try:
            source = request["template"]
            if source not in compiled:
                compiled[source] = environment.from_string(source)
            text = compiled[source].render(request["variables"])
            if len(text) > LONGEST_TEXT:
                raise ValueError(f"it made a text of {len(text)} characters; {LONGEST_TEXT} are allowed")
            reply = {"text": text}
        except Exception as error:
            reply = {"error": described(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer(reply)


def sandbox():
    """Jinja as chat templates expect it, which is as the library `transformers` sets it up."""
    # These would be loaded at the first error, and by filters at first use, when no file can be opened.
    import html  # noqa: F401
    import textwrap  # noqa: F401

    import jinja2.debug  # noqa: F401
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}: marks what the assistant says; here it is just its content."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class PlainNamespace(Namespace):
        """namespace() without the names that lead into Python."""

        def __init__(*args, **kwargs):  # `self` may be the name of a value
            for name in dict(*args[1:], **kwargs):
                check_name(name)
            Namespace.__init__(*args, **kwargs)

        def __setitem__(self, name, value):
            check_name(name)
            super().__setitem__(name, value)

    def check_name(name):
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}: names with an underscore in front are refused")

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format):
        return datetime.now().strftime(format)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    del environment.globals["lipsum"]  # wants a file
    environment.filters["tojson"] = tojson  # without the escapes of HTML
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "namespace": PlainNamespace,
    }
    return environment


def described(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it asks for more memory than a template gets"
    if isinstance(error, RecursionError):
        return "it nests or calls itself too deeply"
    line = getattr(error, "lineno", None)
    name = type(error).__name__
    text = f"{name}: {error}" if name != "TemplateError" else str(error)  # what raise_exception was given
    # It goes to a terminal, and a template is a stranger's.
    text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text[:LONGEST_ERROR])
    return text + (f" (line {line})" if line else "")


def answer(reply: dict) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
