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
from sphinx.util.docutils import SphinxDirective

import aiosmrt

# Packages whose modules are public one by one.
NAMESPACES = ("aiosmrt.integrations",)


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


def _directive(thing: Any) -> str:
    if inspect.isclass(thing):
        return "autoexception" if issubclass(thing, BaseException) else "autoclass"
    return "autofunction" if inspect.isroutine(thing) else "autodata"


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
            thing = getattr(namespace, name)
            directive = _directive(thing)
            lines += [f".. {directive}:: {module}.{name}"]
            if inspect.isclass(thing):
                lines += ["   :members:"]
                if issubclass(thing, BaseException):
                    lines += ["   :show-inheritance:"]
                if is_typeddict(thing):
                    lines += ["   :undoc-members:"]
            elif directive == "autodata":
                lines += ["   :no-value:"]
            lines += [""]
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
