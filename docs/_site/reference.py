"""The pages of the API reference: each public name once, on the page of the module that it belongs to.

A module may offer names that another one defines, as ``aiosmrt`` offers ``aiosmrt.client.Client``. Such a name is
described where it is defined if that is public, or else on the first page that has it; the other pages link there, and
every public spelling is in the site's inventory (``objects.inv``).
"""

import importlib
import inspect
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any, is_typeddict

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import mock
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import restify

import aiosmrt

# Packages whose modules are public one by one.
NAMESPACES = ("aiosmrt.integrations",)

# What the modules of engines import, and what need not be installed where the site is built.
ENGINES = ["daft", "dask", "distributed", "pyspark", "ray"]


def _modules_without_underscore(package: ModuleType) -> list[str]:
    found = pkgutil.iter_modules(package.__path__)
    return [f"{package.__name__}.{module.name}" for module in found if not module.name.startswith("_")]


@cache
def public_modules() -> tuple[str, ...]:
    """The modules that users import from, ``aiosmrt`` first."""
    names = [aiosmrt.__name__, *_modules_without_underscore(aiosmrt)]
    for namespace in NAMESPACES:
        names.remove(namespace)
        names += _modules_without_underscore(importlib.import_module(namespace))
    with mock(ENGINES):
        for name in names:
            importlib.import_module(name)
    return tuple(names)


@cache
def homes() -> dict[str, str]:
    """For every public spelling of a name, the one under which it is described."""
    offers = {module: importlib.import_module(module) for module in public_modules()}
    found: dict[str, str] = {}
    for module, namespace in offers.items():
        for name in namespace.__all__:
            thing = getattr(namespace, name)
            others = [m for m, n in offers.items() if name in n.__all__ and getattr(n, name) is thing]
            defined = getattr(thing, "__module__", None)
            found[f"{module}.{name}"] = f"{defined if defined in others else _data_home(name, others)}.{name}"
    return found


def _data_home(name: str, modules: list[str]) -> str:
    """Aliases and constants do not know where they are defined: in the module that assigns them."""
    for module in modules:
        source = inspect.getsource(importlib.import_module(module))
        if f"\n{name}: " in source or f"\n{name} = " in source:
            return module
    return modules[0]


def _entry(module: str, name: str) -> list[str]:
    """The directive that describes a name, and its lines."""
    thing = getattr(importlib.import_module(module), name)
    if inspect.isclass(thing):
        is_error = issubclass(thing, BaseException)
        lines = [f".. {'autoexception' if is_error else 'autoclass'}:: {module}.{name}", "   :members:"]
        lines += ["   :show-inheritance:"] if is_error else []
        lines += ["   :undoc-members:"] if is_typeddict(thing) else []
        return lines
    if inspect.ismodule(thing):
        return [f".. automodule:: {module}.{name}", "   :members:"]
    if inspect.isroutine(thing):
        return [f".. autofunction:: {module}.{name}"]
    if ("", name) in ModuleAnalyzer.for_module(module).find_attr_docs():
        return [f".. autodata:: {module}.{name}", "   :no-value:"]
    return [f".. py:data:: {name}", f"   :module: {module}", *_facts(thing)]


def _facts(thing: Any) -> list[str]:
    """What there is to say of a value, whose docstring is its type's."""
    kind = type(thing)
    if kind in (str, int, float):
        return [f"   :value: {thing!r}"]
    if kind.__module__.startswith("aiosmrt"):
        paragraph = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")
        return ["", f"   ``{thing!r}``. {paragraph}"]
    return ["", f"   Stands for {restify(thing, 'smart')}."]


def _summary(namespace: ModuleType, name: str) -> str:
    thing = getattr(namespace, name)
    if not inspect.isclass(thing) and not inspect.isroutine(thing):
        return ""
    return ": " + (inspect.getdoc(thing) or "").partition("\n")[0]


class PublicModule(SphinxDirective):
    """``.. public-module:: NAME``: all that a module offers."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        homes()
        namespace = importlib.import_module(module)
        here, elsewhere = [], []
        for name in namespace.__all__:
            (here if homes()[f"{module}.{name}"] == f"{module}.{name}" else elsewhere).append(name)
        lines = [f".. automodule:: {module}", ""]
        if elsewhere:
            lines += ["From other modules:", ""]
            lines += [
                f"- :py:obj:`{name} <{homes()[f'{module}.{name}']}>`{_summary(namespace, name)}" for name in elsewhere
            ]
            lines += [""]
        for name in here:
            lines += [*_entry(module, name), ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=False)


def _add_spellings(app: Sphinx, env: Any) -> None:
    domain = env.get_domain("py")
    for spelling, home in homes().items():
        entry = domain.objects.get(home)
        if spelling != home and entry is not None:
            domain.objects[spelling] = entry._replace(aliased=True)


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    # A named tuple's fields are in its signature and in its text.
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("public-module", PublicModule)
    app.connect("env-updated", _add_spellings)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
