"""What masks allow, jsonschema approves, whatever is chosen among it."""

import json
import random

import pytest

from protocol.params import Grammar
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.tokens import Tokens
from frontend.server.text.tokenizer import Tokenizer
from tests.scheduler_proc.grammar.accepting import allowed
from tests.scheduler_proc.grammar.schemas import complaint, random_schema
