"""What a kernel answers, and what it publishes, to one client that asks for one thing after another."""

import pytest
import zmq


def test_kernel_info_tells_who_it_is(client, program):
    content = client.ask("kernel_info_request").finish().content
    assert content["status"] == "ok"
    assert tuple(map(int, content["protocol_version"].split("."))) >= (5, 3)
    assert content["implementation"] == program.name
    assert content["implementation_version"]
    language = content["language_info"]
    assert {"name", "version", "mimetype", "file_extension"} <= set(language)
    assert language["file_extension"].startswith(".")
    assert content["banner"]


def test_control_answers_as_shell_does(client):
    asked = client.ask("kernel_info_request", channel="control")
    assert asked.finish().content == client.ask("kernel_info_request").finish().content
    assert asked.types == ["busy", "idle"]


RESULTS = {
    "1 + 2": "3",
    "7 / 2": "3.5",
    "2 + 3 * 4": "14",
    "(2 + 3) * 4": "20",
    "-(1 - 2.5)": "1.5",
    "1e3": "1000",
    "0.1 + 0.2": "0.30000000000000004",
    '"ab"': '"ab"',
    '"a" + "b"': '"ab"',
    r'"\"\\\n\t"': r'"\"\\\n\t"',
    "(1 +\n2)": "3",
    "x = 20\n\nx + 1  # comment": "21",
    "# first\n5\n": "5",
    "x = 1": None,
    "1\nx = 1": None,
    "print(1)": None,
    "": None,
    "# nothing": None,
}


def test_the_last_expression_of_a_cell_is_its_result(client):
    assert {code: client.run(code).result for code in RESULTS} == RESULTS


def test_everything_about_a_cell_is_published_in_order(client):
    code = 'print("a")\nwarn("b")\nprint(1 + 1)\n6 * 7'
    cell = client.run(code)
    assert cell.status == "ok"
    assert cell.streams == [("stdout", "a\n"), ("stderr", "b\n"), ("stdout", "2\n")]
    assert cell.result == "42"
    types = [name for at, name in enumerate(cell.types) if name != "stream" or cell.types[at - 1] != "stream"]
    assert types == ["busy", "execute_input", "stream", "execute_result", "idle"]
    assert cell.of_type("execute_input") == [{"code": code, "execution_count": 1}]
    assert cell.of_type("execute_result")[0]["execution_count"] == cell.count == 1


def test_every_message_names_its_parent_and_has_an_id_of_its_own(client):
    cell = client.run('print("a")\n1')
    messages = [cell.reply, *cell.published]
    session = client.session.session
    assert {(m["parent_header"]["msg_id"], m["parent_header"]["session"]) for m in messages} == {(cell.id, session)}
    assert client.order == [cell.id] * 5, "nothing came without a parent"
    assert len({m["header"]["msg_id"] for m in messages}) == len(messages)
    (kernel_session,) = {m["header"]["session"] for m in messages}
    assert kernel_session != session


def test_a_cell_without_output_publishes_its_status_and_input_only(client):
    assert client.run("x = 1").types == ["busy", "execute_input", "idle"]


ERRORS = {
    "1 +": "SyntaxError",
    "(1 +": "SyntaxError",
    '"open': "SyntaxError",
    "print = 1": "SyntaxError",
    "nope": "NameError",
    "nope(1)": "NameError",
    '1 + "a"': "TypeError",
    "print()": "TypeError",
    "1 / 0": "ZeroDivisionError",
    'raise("x")': "RuntimeError",
}


def test_an_error_has_its_name(client):
    assert {code: client.run(code).ename for code in ERRORS} == ERRORS


def test_an_error_is_in_the_reply_and_published(client):
    cell = client.run('print("before")\nraise("wörds")\nprint("after")')
    assert (cell.status, cell.ename, cell.content["evalue"]) == ("error", "RuntimeError", "wörds")
    assert cell.types == ["busy", "execute_input", "stream", "error", "idle"]
    assert cell.stdout == "before\n"
    published = cell.of_type("error")[0]
    assert {key: cell.content[key] for key in published} == published
    assert "wörds" in "".join(published["traceback"])


def test_a_cell_that_cannot_be_parsed_runs_nothing(client):
    assert client.run('print("a")\n1 +').types == ["busy", "execute_input", "error", "idle"]


def test_nesting_without_end_is_an_error(client):
    assert client.run("(" * 100_000 + "1" + ")" * 100_000).ename == "SyntaxError"
    assert client.run("-" * 100_000 + "1").ename in ["", "SyntaxError"]
    assert client.run("1" + " + 1" * 100_000).ename in ["", "SyntaxError"]
    assert client.run("1 + 1").result == "2"


def test_variables_live_from_cell_to_cell(client):
    client.run('x = 2\nname = "b"')
    client.run("x = x * 21\n1 / 0")
    assert client.run("x").result == "42"
    assert client.run('"a" + name').result == '"ab"'


def test_each_cell_counts(client):
    assert [client.run(code).count for code in ["1", "x = 1", "nope", "1 +", "print(1)"]] == [1, 2, 3, 4, 5]


def test_a_cell_that_is_not_stored_does_not_count(client):
    assert client.run("1").count == 1
    cell = client.run("x = 2\nx", store_history=False)
    assert (cell.status, cell.result) == ("ok", "2")
    assert client.run("3").count == 2
    assert [line[2] for line in history(client, "tail", n=10)] == ["1", "3"]


def test_a_silent_cell_runs_and_publishes_nothing(client):
    cell = client.run('x = 2\nprint("a")\nx', silent=True)
    assert cell.status == "ok"
    assert cell.types == ["busy", "idle"]
    assert (client.run("x").result, client.run("1").count) == ("2", 2)
    assert client.run("nope", silent=True).ename == "NameError"


def test_user_expressions_are_evaluated_after_the_cell(client):
    cell = client.run("x = 4", user_expressions={"twice": "x * 2", "text": '"a"', "wrong": "nope"})
    values = cell.content["user_expressions"]
    assert values["twice"] == {"status": "ok", "data": {"text/plain": "8"}, "metadata": {}}
    assert values["text"]["data"] == {"text/plain": '"a"'}
    assert (values["wrong"]["status"], values["wrong"]["ename"]) == ("error", "NameError")
    assert cell.types == ["busy", "execute_input", "idle"]


def test_user_expressions_of_a_cell_that_failed_are_not_evaluated(client):
    cell = client.run("x = 1\nnope", user_expressions={"a": 'print("no")'})
    assert (cell.ename, cell.stdout) == ("NameError", "")
    assert not cell.content.get("user_expressions")


def completed(client, code, cursor=None):
    """The completions, and the text that they stand for."""
    cursor = len(code) if cursor is None else cursor
    content = client.ask("complete_request", {"code": code, "cursor_pos": cursor}).finish().content
    assert content["status"] == "ok"
    return content["matches"], code[content["cursor_start"] : content["cursor_end"]]


def test_completion_knows_builtins_and_variables(client):
    client.run("printer = 1\nspinach = 2")
    assert completed(client, "pri") == (["print", "printer"], "pri")
    assert completed(client, "1 + spi") == (["spin", "spinach"], "spi")
    assert completed(client, "zzz") == ([], "zzz")
    matches, replaced = completed(client, "")
    assert {"print", "warn", "input", "sleep", "spin", "stubborn", "raise", "printer", "spinach"} <= set(matches)
    assert replaced == ""


def test_completion_counts_in_characters(client):
    assert completed(client, '"ž😀" + slee') == (["sleep"], "slee")
    assert completed(client, "slee + 1", 4) == (["sleep"], "slee")
    assert completed(client, "x = 1\nslee") == (["sleep"], "slee")
    assert completed(client, "slee", 2)[0] == ["sleep"]


def test_a_cursor_outside_of_the_code_does_no_harm(client):
    for cursor in [5, 10**12, -1]:
        assert client.ask("complete_request", {"code": "slee", "cursor_pos": cursor}).finish().status in ["ok", "error"]
        assert client.ask("inspect_request", {"code": "slee", "cursor_pos": cursor}).finish().status in ["ok", "error"]
    assert client.run("1").result == "1"


def inspected(client, code, cursor=None):
    content = {"code": code, "cursor_pos": len(code) if cursor is None else cursor, "detail_level": 0}
    content = client.ask("inspect_request", content).finish().content
    assert (content["status"], bool(content["data"])) == ("ok", content["found"])
    return content["data"].get("text/plain")


def test_inspection_knows_builtins_and_variables(client):
    client.run("answer = 6 * 7")
    assert "42" in inspected(client, "answer")
    assert "42" in inspected(client, '"ž😀" + answer + 1', 10)
    assert "sleep(" in inspected(client, "sleep(1)", 3)
    assert inspected(client, "nope") is None
    assert inspected(client, "") is None


@pytest.mark.parametrize(
    "status, codes",
    [
        ("complete", ["", "1 + 2", "x = 1\nx", '"("', "(1 +\n2)", "nope"]),
        ("incomplete", ["(1 +", "print(", "x = (1 +\n", "1\n((2)"]),
        ("invalid", ["1 +", '"open', ")", "1 2", "= 1", "(1 + )"]),
    ],
)
def test_is_complete(client, status, codes):
    answers = {code: client.ask("is_complete_request", {"code": code}).finish().content for code in codes}
    assert {code: answer["status"] for code, answer in answers.items()} == dict.fromkeys(codes, status)
    assert all(("indent" in answer) == (status == "incomplete") for answer in answers.values())


def history(client, kind, output=False, **options):
    content = {"hist_access_type": kind, "output": output, "raw": True, **options}
    content = client.ask("history_request", content).finish().content
    assert content["status"] == "ok"
    return content["history"]


def test_history_by_tail_range_and_search(client):
    codes = ["x = 1", "x + 1", "nope", 'print("a")', "x + 1"]
    for code in codes:
        client.run(code)
    session = history(client, "tail", n=1)[0][0]
    lines = [[session, line, code] for line, code in enumerate(codes, 1)]
    assert history(client, "tail", n=3) == lines[-3:]
    assert history(client, "tail", n=99) == lines
    assert history(client, "tail", n=0) == []
    assert history(client, "range", session=session, start=2, stop=4) == lines[1:3]
    assert history(client, "range", session=0, start=1, stop=99) == lines, "session 0 is the current one"
    assert history(client, "range", session=session + 1, start=1, stop=99) == []
    assert history(client, "search", pattern="x*", n=99) == [lines[0], lines[1], lines[4]]
    assert history(client, "search", pattern="x ? 1", n=1) == [lines[4]]
    assert [line[2] for line in history(client, "search", pattern="x + *", n=99, unique=True)] == ["x + 1"]
    assert history(client, "search", pattern="none", n=99) == []


def test_history_with_outputs(client):
    client.run("x = 1")
    client.run("x + 1")
    assert [line[2] for line in history(client, "tail", True, n=2)] == [["x = 1", None], ["x + 1", "2"]]


def test_there_are_no_comms(client):
    assert client.ask("comm_info_request").finish().content == {"status": "ok", "comms": {}}


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_a_request_that_it_does_not_know_does_no_harm(client, channel):
    comms = ["comm_open", "comm_msg", "comm_close"]
    for unknown in ["no_such_request", *comms, "execute_reply", "debug_request", "", "x" * 9999]:
        client.ask(unknown, {"comm_id": "1", "data": {}}, channel)
    assert client.ask("kernel_info_request", channel=channel).finish().status == "ok"
    assert client.run("1 + 1").result == "2"


TEXTS = ["žluťoučký kůň", "😀 𝔘𝔫𝔦", "日本語\u2028\u0000\u007f", "'<IDS|MSG>'", "%s {} \\\\n"]


@pytest.mark.parametrize("text", TEXTS, ids=["Czech", "four bytes", "controls", "delimiter", "formats"])
def test_text_comes_back_as_it_was_sent(client, text):
    cell = client.run(f'print("{text}")\nwarn("{text}")\n"{text}"')
    printed = text.replace("\\\\", "\\") + "\n"
    assert cell.streams == [("stdout", printed), ("stderr", printed)]
    assert cell.result is not None
    assert client.run(cell.result).result == cell.result, "a result that is text reads back as itself"


def test_a_large_text_comes_back(client):
    text = "0123456789abcdef" * 65536
    cell = client.run(f'x = "{text}"\nprint(x)\nx')
    assert cell.stdout == text + "\n"
    assert cell.result == f'"{text}"'


def test_buffers_and_metadata_of_a_request_do_no_harm(client):
    message = client.session.msg("execute_request", {"code": "1 + 2", "silent": False}, metadata={"cellId": "a"})
    client.session.send(client.shell_channel.socket, message, buffers=[b"", b"\xff" * 100])
    assert client.follow(message["header"]["msg_id"]).finish().result == "3"


def test_an_execute_request_may_leave_out_what_has_a_default(client):
    cell = client.ask("execute_request", {"code": "1 + 2"}).finish()
    assert (cell.result, cell.count) == ("3", 1)


def test_a_reply_goes_back_through_all_identities_of_its_request(kernel, client):
    """A proxy adds its own identity before that of its client; a REQ socket adds an empty one."""
    with kernel.socket("shell") as socket:
        client.session.send(socket, "kernel_info_request", ident=[b"proxy", b"client"])
        identities, message = client.session.recv(socket, mode=0)
    assert (identities, message["msg_type"]) == ([b"proxy", b"client"], "kernel_info_reply")
    with kernel.socket("shell", zmq.REQ) as socket:
        client.session.send(socket, "kernel_info_request")
        assert client.session.recv(socket, mode=0)[1]["msg_type"] == "kernel_info_reply"


def test_without_a_key_nothing_is_signed(start):
    kernel = start(key=b"")
    client = kernel.client()
    assert kernel.info["key"] == ""
    assert client.run("1 + 2").result == "3"


def test_the_heartbeat_echoes(kernel):
    with kernel.socket("hb", zmq.REQ) as socket:
        for beat in [b"ping", b"", bytes(range(256)), b"x" * 100_000]:
            socket.send(beat)
            assert socket.recv() == beat
