"""The child process: makes objects, calls their methods, one request a line. Run by path, with any Python from 3.8 on.

    {"do": "make", "object": 0, "path": "module:Class", "options": {}}      the path may be "file.py:Class", too
    {"do": "call", "object": 0, "method": "step", "args": ["left"], "options": {}}
    {"do": "tools", "object": 0, "without": ["reset"]}

Each gets one line of JSON: {"value": …} or {"error": "ValueError: …", "kind": "ValueError"}. It imports nothing of
Kanabo, because the Python that runs it may not have it. What the object prints goes to standard error.
"""

import asyncio
import functools
import importlib
import importlib.util
import inspect
import json
import os
import queue
import re
import signal
import sys
import threading
import traceback
import types
import typing

LOOP = asyncio.new_event_loop()
"""The loop of all async methods: what an object opens in one, such as an HTTP client, serves in the next."""


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]  # this file's folder is nothing that a user's imports should find
    objects = {}
    for request in requests():
        try:
            text = json.dumps({"value": serve(objects, request)}, default=plain)
        except BaseException as error:  # also SystemExit: it ends an episode, not the process
            text = json.dumps({"error": described(error), "kind": type(error).__name__})
        answers.write(text + "\n")
        answers.flush()


def requests():
    """Yield requests in turn; the process and all that it started end with standard input, whatever runs then."""
    lines = queue.Queue()

    def read():
        for line in sys.stdin:
            lines.put(line)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


def serve(objects, request):
    if request["do"] == "make":
        sys.path.extend(p for p in request["import_path"] if p not in sys.path)
        objects[request["object"]] = resolve(request["path"])(**request["options"])
        return None
    target = objects[request["object"]]
    if request["do"] == "tools":
        return tools(target, request["without"])
    method = getattr(target, request["method"])
    value = method(*request["args"], **accepted(method, request["options"], request["lenient"]))
    return LOOP.run_until_complete(value) if inspect.iscoroutine(value) else value


def resolve(path):
    module, _, name = path.rpartition(":")
    found: typing.Any = from_file(module) if module.endswith(".py") else importlib.import_module(module)
    return functools.reduce(getattr, name.split("."), found)


def from_file(path):
    """The module in a file, which finds the modules beside it."""
    folder, file = os.path.split(os.path.abspath(os.path.expanduser(path)))
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(file[: -len(".py")], os.path.join(folder, file))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accepted(method, options, lenient):
    """The options that the method has a parameter for, where it need not take all."""
    if not lenient:
        return options
    parameters = inspect.signature(method).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return options
    return {p.name: options[p.name] for p in parameters if p.name in options}


def tools(target, without):
    """Schemas of the public methods with docstrings but those in `without`, and the names of all public methods."""
    names = [n for n, _ in inspect.getmembers(type(target), callable) if not n.startswith("_")]
    shown = [n for n in names if n not in without and getattr(target, n).__doc__]
    return [schema_of(getattr(target, n)) for n in shown], names


TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array", tuple: "array"}
SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$", re.MULTILINE)
ARGUMENT = re.compile(r"^(\s*)(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


def schema_of(method):
    """A method's OpenAI schema, from its type hints and its docstring in Google's style.

    It equals that of transformers' get_json_schema, which TRL uses and which takes seconds to import.
    """
    name, text = method.__name__, inspect.cleandoc(method.__doc__)
    hints, described = typing.get_type_hints(method), arguments_of(text)
    properties, required = {}, []
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"{name} takes *args or **kwargs, which no schema can describe")
        if parameter.name not in hints:
            raise ValueError(f"{name}: the argument '{parameter.name}' has no type hint")
        if parameter.name not in described:
            raise ValueError(f"{name}: its docstring does not describe '{parameter.name}' under 'Args:'")
        description = {"description": described[parameter.name]}
        properties[parameter.name] = {**type_schema(hints[parameter.name], name), **description}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    summary = SECTION.split(text)[0].strip()
    return {"type": "function", "function": {"name": name, "description": summary, "parameters": parameters}}


def arguments_of(text):
    """What a docstring says about each argument, its lines joined."""
    parts = SECTION.split(text)
    bodies = [parts[i + 1] for i in range(1, len(parts), 2) if parts[i] in ("Args", "Arguments", "Parameters")]
    described, last, indent = {}, None, None
    for line in "\n".join(bodies).splitlines():
        found = ARGUMENT.match(line)
        if found and (indent is None or len(found[1]) <= indent):
            indent = len(found[1])
            last = found[2]
            described[last] = found[3].strip()
        elif last is not None and line.strip():
            described[last] = f"{described[last]} {line.strip()}".strip()
    return described


def type_schema(hint, where):
    """The JSON schema of a type hint. Raises ValueError for a class that JSON has no form for."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return {}
    if hint in TYPES:
        return {"type": TYPES[hint]}
    if origin is typing.Literal:
        return {"type": TYPES[type(args[0])], "enum": list(args)}
    if origin is typing.Union or origin is getattr(types, "UnionType", None):
        kinds = [type_schema(a, where) for a in args if a is not type(None)]
        simple = all(set(kind) == {"type"} for kind in kinds)
        schema = kinds[0] if len(kinds) == 1 else {"type": [k["type"] for k in kinds]} if simple else {"anyOf": kinds}
        return {**schema, "nullable": True} if type(None) in args else schema
    if origin is list:
        return {"type": "array", "items": type_schema(args[0], where)}
    if origin is dict:
        return {"type": "object", "additionalProperties": type_schema(args[1], where)}
    raise ValueError(f"{where}: the type {hint!r} has no JSON schema")


def plain(value):
    """What JSON has no form for: a number of numpy's, or the text of anything else."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else str(value)


def described(error):
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    try:
        text = str(error).encode("utf-8", "backslashreplace").decode()
    except BaseException:
        text = "its message cannot be read"
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0][:500]}{where}"


if __name__ == "__main__":
    main()
