"""llama.cpp's grammars: those that it ships as examples, and what its readers of other engines stumble over."""

import pytest

from frontend.server.text.tokenizer import Tokenizer
from protocol.params import Grammar
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.gbnf import gbnf_to_lark
from scheduler_proc.grammar.tokens import Tokens
from tests.scheduler_proc.grammar.accepting import accepts

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Optional space
ws ::= | " " | "\n" [ \t]{0,20}
"""
ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t]*
"""


@pytest.mark.parametrize(
    ("grammar", "text", "wanted"),
    [
        (JSON, '{ "a": [1, 2.5e3, {"b":null}], "c\\n":"x" }', True),
        (JSON, '{"a":}', False),
        (ARITHMETIC, "(a+3)*b= 3\n", True),
        (ARITHMETIC, "a=\n", False),
        ('root ::= "x" "xz" | "xx" "y"', "xxz", True),  # characters, not the longest of several words
        ('root ::= "x" "xz" | "xx" "y"', "xxy", True),
        ('root ::= [a-z]+ "end"', "endend", True),
        ("root ::= [^a-c]{2,3}", "xyz", True),
        ("root ::= [^a-c]{2,3}", "xa", False),
        (r'root ::= "é" "\u00e9" "\U0001F600" "\x41"', "éé😀A", True),
        (r"root ::= [\]\[\\/-]+", r"][\/-", True),
        ("root ::= .", "\n", True),
        ('root ::= "a"? # comment\n\n  \nother ::= "b"', "", True),
        ('root ::= my-rule\nmy-rule ::= "a"', "a", True),
        ('root ::= "a" |\n "b"', "b", True),
        ('root ::= "(" root? ")"', "((()))", True),
        ('root ::= "(" root? ")"', "((())", False),
        ('root ::= "a"{3}', "aaa", True),
        ('root ::= "a"{3,}', "aaaaa", True),
        ('root ::= "a/b\\"c"', 'a/b"c', True),
    ],
)
def test_texts_are_those_of_the_grammar(tokens: Tokens, tokenizer: Tokenizer, grammar: str, text: str, wanted: bool) -> None:
    assert accepts(tokens, tokenizer, Grammar("gbnf", grammar), text) is wanted


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("", "no rule `root`"),
        ('other ::= "a"', "no rule `root`"),
        ('root ::= "a', "line 1, column 12 of the grammar: a string is not closed"),
        ("root ::= [a", "a class of characters is not closed"),
        ("root ::= []", "a class of characters is empty"),
        ("root ::= [z-a]", "a range of characters ends before it begins"),
        ('root ::= ("a"', "`)` is wanted"),
        ("root ::= other", "the rule `root` uses `other`, which is not there"),
        ('root ::= "a"\nroot ::= "b"', "the rule `root` is there twice"),
        ('root = "a"', "`::=` is wanted"),
        ('root ::= "a" ::= "b"', "the end of the line is wanted"),
        (r'root ::= "\q"', r"`\q` is no escape"),
        (r'root ::= "\ud800"', r"`\u` is no escape"),
        ('root ::= "a"{x}', "`{m}`, `{m,}` or `{m,n}` is wanted"),
        ("root ::= " + "(" * 100, "nested deeper than 64"),
        ("\n\n  ?", "line 3, column 3 of the grammar: the name of a rule is wanted"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(grammar: str, said: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        gbnf_to_lark(grammar)
    assert said in str(refusal.value)


def test_a_megabyte_takes_a_moment() -> None:
    rules = "".join(f'r{index} ::= "word {index}" | [a-z]{{1,3}} r{index + 1}\n' for index in range(5000))
    assert len(gbnf_to_lark(f'root ::= r0\n{rules}r5000 ::= "end"')) > 200_000
