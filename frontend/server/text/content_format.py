"""How a chat template takes the content of a message: as a text, or as a list of parts."""

from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import nodes

from frontend.server.text.fences import Messages


@dataclass(frozen=True, slots=True)
class ContentFormat:
    """Read off a template: whether it walks over the parts of a content, and whether it tells a text from them."""

    walks: bool
    tells_texts: bool

    def shaped(self, messages: Messages) -> Messages:
        """The messages with contents as the template takes them. Parts become one text where it knows none, a line for each."""
        return [{**message, "content": self._shaped(message["role"], message["content"])} for message in messages]

    def _shaped(self, role: str, content: object) -> object:
        if isinstance(content, str):
            return content if self.tells_texts or not self.walks else [{"type": "text", "text": content}]
        # Templates that walk over what users say often take the results of tools as texts only.
        if isinstance(content, list) and (not self.walks or (role in ("tool", "function") and self.tells_texts)):
            return "\n".join(part["text"] for part in content)
        return content


def content_format(template: nodes.Template) -> ContentFormat:
    """What the syntax tree says: a loop over something that came from a message's `content` walks over parts."""
    names = _names_of_contents(template)
    walks = any(_is_content(loop.iter, names) for loop in template.find_all(nodes.For))
    tests = template.find_all(nodes.Test)
    tells = any(test.name == "string" and _is_content(test.node, names) for test in tests)
    return ContentFormat(walks, tells)


_SELECTIONS = ("list", "reverse", "select", "selectattr", "reject", "rejectattr")


def _names_of_contents(template: nodes.Template) -> set[str]:
    """Variables and parameters of macros that hold contents."""
    macros = {macro.name: macro for macro in template.find_all(nodes.Macro)}
    names: set[str] = set()
    size = -1
    while len(names) != size:
        size = len(names)
        for assignment in template.find_all(nodes.Assign):
            if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node, names):
                names.add(assignment.target.name)
        for call in template.find_all(nodes.Call):
            macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
            if macro is not None:
                names.update(_parameters(macro, call, names))
    return names


def _parameters(macro: nodes.Macro, call: nodes.Call, names: set[str]) -> Iterator[str]:
    for parameter, value in zip(macro.args, call.args, strict=False):
        if _is_content(value, names):
            yield parameter.name
    for keyword in call.kwargs:
        if _is_content(keyword.value, names):
            yield keyword.key


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    """Whether an expression is a content, or a selection from one."""
    match node:
        case nodes.Name():
            return node.name in names
        case nodes.Getattr():
            return node.attr == "content"
        case nodes.Getitem():
            if isinstance(node.arg, nodes.Slice):
                return _is_content(node.node, names)
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        case nodes.Call(node=nodes.Getattr(attr="get"), args=[nodes.Const(value="content"), *_]):
            return True
        case nodes.Filter():
            return node.name in _SELECTIONS and _is_content(node.node, names)
        case nodes.CondExpr():
            return _is_content(node.expr1, names) or _is_content(node.expr2, names)
        case nodes.Or() | nodes.And():
            return _is_content(node.left, names) or _is_content(node.right, names)
    return False
