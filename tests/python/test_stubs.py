"""_C.pyi is what the extension is; public names have docstrings."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch.nn.cpp

import dmamba
from dmamba import _C

STUB = ast.parse((Path(dmamba.__file__).parent / "_C.pyi").read_text(encoding="utf-8"))
# What torch's or pybind11's base classes bring along is theirs to describe.
BASES = (object, Exception, dmamba.nn.Mamba.__mro__[-2])
Arguments = list[tuple[str, bool]]  # name, and whether it has a default


def classes(module: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}


def functions(body: list[ast.stmt]) -> dict[str, list[ast.FunctionDef]]:
    """The functions of a module or class by name; of overloaded ones all."""
    found: dict[str, list[ast.FunctionDef]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            found.setdefault(node.name, []).append(node)
    return found


def members(node: ast.ClassDef) -> set[str]:
    annotated = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
    return {*functions(node.body), *(target.id for target in annotated)}


def arguments_of(node: ast.FunctionDef) -> Arguments:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    plain = len(names) - len(node.args.defaults)
    found = [(name, place >= plain) for place, name in enumerate(names)]
    return found[1:] if names[:1] == ["self"] else found


def signatures(function) -> list[Arguments]:
    """What pybind11 writes into a docstring: a signature, or a numbered one for each overload."""
    lines = (function.__doc__ or "").splitlines()
    name = function.__name__
    found = []
    for line in lines:
        match = re.match(rf"(?:\d+\. )?({re.escape(name)}\(.*\)( -> .*)?)$", line)
        if match and "(*args, **kwargs)" not in line:
            # Defaults such as <dmamba._C.Ranks object at 0x...> are no Python.
            text = re.sub(r"= <[^>]*>", "= None", match[1])
            (node,) = ast.parse(f"def {text}: ...").body
            assert isinstance(node, ast.FunctionDef)
            found.append(arguments_of(node))
    return found


def union(all_arguments: list[Arguments]) -> set[str]:
    return {name for arguments in all_arguments for name, _ in arguments}


def same_arguments(where: str, function, stub: list[ast.FunctionDef]) -> None:
    runtime, written = signatures(function), [arguments_of(node) for node in stub]
    assert runtime, f"{where}: the extension has no signature"
    unnamed = [name for name in union(runtime) if re.fullmatch(r"arg\d+", name)]
    assert not unnamed, f"{where}: an argument without a name in the bindings"
    if len(runtime) == len(written) == 1:
        assert written == runtime, where
    else:
        assert union(written) == union(runtime), where
        shortest = min(sum(not default for _, default in each) for each in runtime)
        assert min(sum(not default for _, default in each) for each in written) == shortest, where


def test_the_stub_names_what_the_extension_has():
    public = {name for name, value in vars(_C).items() if not name.startswith("_")}
    public -= {name for name in public if inspect.ismodule(getattr(_C, name))}
    assert {*classes(STUB), *functions(STUB.body)} == public


@pytest.mark.parametrize("name", functions(STUB.body))
def test_functions(name):
    same_arguments(name, getattr(_C, name), functions(STUB.body)[name])


@pytest.mark.parametrize("name", classes(STUB))
def test_classes(name):
    cls, node = getattr(_C, name), classes(STUB)[name]
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    assert bases <= {base.__name__ for base in cls.__mro__[1:]}
    if issubclass(cls, torch.nn.cpp.ModuleWrapper):
        return  # Python's: a wrapper that asks the C++ module for every attribute
    own = {key for key in vars(cls) if not key.startswith("_")}
    assert own == {member for member in members(node) if not member.startswith("_")}
    for method, overloads in functions(node.body).items():
        decorators = {each.id for each in overloads[0].decorator_list if hasattr(each, "id")}
        value = inspect.getattr_static(cls, method)
        assert isinstance(value, property) == ("property" in decorators), method
        if "property" not in decorators and method not in ("__len__",):
            same_arguments(f"{name}.{method}", getattr(cls, method), overloads)


@pytest.mark.parametrize("name", [*functions(STUB.body), *classes(STUB)])
def test_the_extension_explains_itself(name):
    text = getattr(_C, name).__doc__ or ""
    plain = [line for line in text.splitlines() if line and not line.startswith(name + "(")]
    assert plain and plain[0] != "Overloaded function.", f"{name}: no docstring in the bindings"


def public_objects():
    """Every public function, class and method of the package, by its full name."""
    modules = [dmamba, *(getattr(dmamba, name) for name in ("data", "envs", "nn", "ops"))]
    for module in modules:
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
        ]
        for name in names:
            value = getattr(module, name)
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                for member, method in vars(value).items():
                    if not member.startswith("_") and callable(getattr(value, member)):
                        yield f"{module.__name__}.{name}.{member}", method


@pytest.mark.parametrize(
    "value", [pytest.param(value, id=name) for name, value in public_objects()]
)
def test_help_says_something(value):
    if isinstance(value, (Path, str, dict, tuple)):
        return  # a constant
    value = getattr(value, "__func__", value)
    text = inspect.getdoc(value)
    assert text and text.strip(), "no docstring"
    first = text.strip().splitlines()[0]
    assert len(first) > 10, first
