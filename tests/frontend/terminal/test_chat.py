"""A chat as its user has it: at a terminal, and through a pipe."""

from contextlib import ExitStack
from pathlib import Path

from frontend.server.ipc.server import IpcServer
from frontend.terminal.chat.conversation import Conversation
from protocol.errors import ExitCode
from tests.frontend.server.api.running import RunningEngine
from tests.frontend.server.ipc.serving import Served, serving
from tests.frontend.terminal.terminals import at_terminal, piped

CHAT = "frontend.terminal.chat"


def test_a_conversation_is_told_in_full_each_time() -> None:
    conversation = Conversation(system="be brief", turns=[("one", "1")])
    assert [(message["role"], message["content"]) for message in conversation.messages("two")] == [
        ("system", "be brief"),
        ("user", "one"),
        ("assistant", "1"),
        ("user", "two"),
    ]


def test_commands() -> None:
    conversation = Conversation(turns=[("one", "1")])
    assert "so from now on" in (conversation.command("/system  You are\na cat. ") or "")
    assert conversation.system == "You are\na cat."
    assert "same system message" in (conversation.command("/clear") or "")
    assert conversation.turns == []
    assert conversation.command("/system") == "no system message"
    assert conversation.messages("hello") == [{"role": "user", "content": "hello"}]
    assert "/clear" in (conversation.command("/help") or "")
    assert conversation.command("/exit") == "/exit is no command; /help lists them"
    for question in ("/usr/bin is what?", "/ is the root", "what is /clear", "/2"):
        assert conversation.command(question) is None


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(served: Served) -> None:
    with at_terminal(CHAT, "--seed", "1", socket=served.path) as terminal:
        assert "demo on sim" in terminal.until("> ").replace("\n", " ")
        for line in ("tell me everything\n", "and \\\nmore\n"):
            terminal.type(line)
            terminal.until(line[-5:])
            terminal.more()
            terminal.type("\x03")
            terminal.until("stopped")
            terminal.until("> ")
            served.running.wait_until_idle()
        terminal.type("\x03")
        terminal.until("Ctrl-D leaves")
        terminal.until("> ")
        terminal.type("/clear\n")
        terminal.until("a new conversation")
        terminal.until("> ")
        terminal.type("\x04")
        assert "Traceback" not in terminal.rest()
        assert terminal.process.wait() == ExitCode.OK


def test_a_question_on_the_command_line_is_the_first(served: Served) -> None:
    with at_terminal(CHAT, "--max-tokens", "5", "who are", "you?", socket=served.path) as terminal:
        assert "5 tokens, the first after" in terminal.until("cut off")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.process.wait() == ExitCode.OK


def test_a_chat_outlives_its_engine(running: RunningEngine, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with ExitStack() as stack:
        with serving(running, path):
            terminal = stack.enter_context(at_terminal(CHAT, "--max-tokens", "3", socket=path))
            terminal.until("> ")
        terminal.type("are you there?\n")
        assert "engine-chat: no engine answers at" in terminal.until("ENGINE_SOCKET")
        terminal.until("> ")
        with serving(running, path):
            terminal.type("and now?\n")
            terminal.until("3 tokens")


def test_an_engine_that_is_starting_is_waited_for(running: RunningEngine, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    server = IpcServer(path)
    server.bind()
    try:
        with at_terminal(CHAT, socket=path) as terminal:
            terminal.until("the engine is starting")
            terminal.type("\x03")
            assert "Traceback" not in terminal.rest()
            assert terminal.process.wait() == 130
    finally:
        server.close()


def test_through_a_pipe_there_is_the_answer_alone(served: Served) -> None:
    options = ("--max-tokens", "8", "--seed", "1")
    done = piped(CHAT, *options, socket=served.path, text="who are you?\nreally?\n")
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    assert done.stdout.endswith("\n") and len(done.stdout) > 5
    assert piped(CHAT, *options, "who are you?\nreally?", socket=served.path).stdout == done.stdout
    assert piped(CHAT, socket=served.path, text=" \n").stdout == ""


def test_what_goes_wrong_has_a_code_and_a_line(served: Served, tmp_path: Path) -> None:
    done = piped(CHAT, "hello", socket=tmp_path / "none.sock")
    assert done.returncode == ExitCode.CRASHED and "no engine answers at" in done.stderr and "Traceback" not in done.stderr
    done = piped(CHAT, "--temperature", "500", "hello", socket=served.path)
    assert done.returncode == ExitCode.CRASHED and "temperature must be between" in done.stderr and "Traceback" not in done.stderr
    done = piped(CHAT, socket=served.path, text="long " * 20_000)
    assert done.returncode == ExitCode.CRASHED and "context" in done.stderr and "/clear" not in done.stderr
