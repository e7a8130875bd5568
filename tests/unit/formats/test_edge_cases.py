"""The malformed and odd inputs, one group per number: what is read, what is reported, and where."""

import json
from pathlib import Path

import pytest

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import ReadReport, load, read_trajectories
from hesnr_tasks.trajectory import Kind

EDGE = Path(__file__).parent / "fixtures" / "edge"


def edge(name, **options):
    report = ReadReport()
    return list(read_trajectories(str(EDGE / name), report=report, **options)), report


def text_of(trajectory, kind):
    return "".join(s.text for m in trajectory.messages for s in m.segments if s.kind is kind)


def warnings_of(trajectory):
    return " | ".join(trajectory.meta["warnings"])


def test_01_a_truncated_file_is_named_and_the_others_are_read(tmp_path):
    with pytest.raises(DataError, match=r"01_truncated\.traj: not valid JSON .*cut off"):
        edge("01_truncated.traj")
    for name in ("01_truncated.traj", "10_demonstrations.traj"):
        (tmp_path / name).write_bytes((EDGE / name).read_bytes())
    report = ReadReport()
    kept = list(read_trajectories(str(tmp_path), on_error="skip", report=report))
    assert [t.id for t in kept] == ["10_demonstrations"]
    assert (report.read, report.kept, report.skipped["invalid JSON"].count) == (2, 1, 1)


def test_02_all_bad_lines_are_listed_with_their_numbers():
    with pytest.raises(DataError) as error:
        edge("02_bad_lines.jsonl")
    message = str(error.value)
    for place in (":3: not valid JSON: Extra data", ":5: no known format", ":6: ", ":7: the line is not UTF-8", ":8: "):
        assert f"02_bad_lines.jsonl{place}" in message
    assert message.startswith("5 records cannot be read")
    assert "--on-error skip" in message


def test_02_bad_lines_are_skipped_and_counted_and_a_blank_one_is_nothing():
    kept, report = edge("02_bad_lines.jsonl", on_error="skip")
    assert [t.id for t in kept] == ["good-1", "good-2"]
    assert (report.read, report.kept) == (7, 2)
    assert {reason: s.count for reason, s in report.skipped.items()} == {
        "invalid JSON": 3,
        "unknown format": 1,
        "not UTF-8": 1,
    }
    assert report.warnings == {}
    assert report.skipped["not UTF-8"].examples[0].endswith("02_bad_lines.jsonl:7: the line is not UTF-8 (byte 0)")


def test_03_unicode_line_separators_inside_strings_survive():
    (trajectory,), _ = edge("03_line_separators.jsonl")
    separators = "a\u2028b\u2029c\x85d\x0be\x0cf"
    assert text_of(trajectory, Kind.CONTEXT) == separators
    assert separators in text_of(trajectory, Kind.ACTION)


def test_04_lone_surrogates_are_replaced_and_counted():
    (trajectory,), _ = edge("04_lone_surrogates.jsonl")
    assert text_of(trajectory, Kind.THOUGHT) == "cut \ufffd here"
    assert "echo \ufffd\ufffd" in text_of(trajectory, Kind.ACTION)
    assert trajectory.id == "cut\ufffd"
    assert "surrogate" in warnings_of(trajectory)
    assert "(3 times)" in warnings_of(trajectory)
    json.dumps(trajectory.to_json(), ensure_ascii=False).encode()


def test_05_containers_stored_as_text_are_decoded(own):
    (trajectory,), _ = edge("05_encoded_containers.jsonl")
    action = "\n\n<function=bash>\n<parameter=command>ls</parameter>\n</function>"
    assert own(trajectory) == [("thought", "Look."), ("action", action)]


def test_06_content_of_every_shape_is_read():
    (trajectory,), _ = edge("06_content_shapes.jsonl")
    assert [m.role for m in trajectory.messages] == ["system", "user", "assistant", "tool", "assistant", "assistant"]
    assert [m.text for m in trajectory.messages][::5] == ["", "Done."]
    assert trajectory.messages[1].text == "a\nb\nc"


def test_07_arguments_that_are_no_json_object_stay_as_they_were_written():
    (trajectory,), _ = edge("07_arguments.jsonl")
    action = text_of(trajectory, Kind.ACTION)
    for part in (
        "<function=s>\n<parameter=command>ls</parameter>\n</function>",
        "<parameter=n>1</parameter>\n<parameter=b>true</parameter>\n<parameter=z>null</parameter>",
        "<function=z>\n</function>",
        '<function=bad>\n{"command": "ls\n"}\n</function>',
        '<function=cut>\n{"command": "l\n</function>',
        '<parameter=command>["bash", "-lc", "ls"]</parameter>',
        "<parameter=cmd>ls</parameter>",
        "<function=list>\n[1, 2]\n</function>",
        "<function=empty>\n</function>",
    ):
        assert part in action
    assert action.count("<function=") == 10


def test_08_broken_xml_calls_are_actions_and_keep_every_character():
    (trajectory,), _ = edge("08_broken_xml.jsonl")
    stored = json.loads((EDGE / "08_broken_xml.jsonl").read_text())["messages"]
    assert [m.text for m in trajectory.messages] == [m["content"] for m in stored]
    shapes = [[s.kind.value[0] for s in m.segments] for m in trajectory.messages[1:]]
    assert shapes == [*["ta"] * 0, *[list("ta")] * 5, list("tat"), list("tata"), list("t"), list("ta")]
    inner = trajectory.messages[6].segments
    assert inner[1].text.endswith("</function> y</parameter>\n</function>\n")
    assert inner[2].text == "After"


def test_09_parallel_calls_talk_and_missing_results_are_read_in_order():
    (trajectory,), _ = edge("09_many_or_no_actions.jsonl")
    kinds = [[s.kind.value for s in m.segments] for m in trajectory.messages]
    both, talk = ["thought", "action"], ["thought"]
    assert kinds == [["context"], both, ["observation"], ["observation"], talk, both, talk]
    assert trajectory.messages[1].segments[1].text.count("<function=bash>") == 2


def test_10_demonstrations_are_context(own):
    (trajectory,), _ = edge("10_demonstrations.traj")
    assert own(trajectory) == [("thought", "mine"), ("action", "\n```\npwd\n```")]
    assert "demo result" in text_of(trajectory, Kind.CONTEXT)
    assert not text_of(trajectory, Kind.OBSERVATION)


def test_11_missing_turns_leave_neighbouring_observations_and_a_warning():
    (trajectory,), report = edge("11_missing_turns.traj.json")
    assert [m.text for m in trajectory.messages[-3:]] == ["out", "The command timed out.", "Still here."]
    assert "rejected" in warnings_of(trajectory)
    assert any("rejected" in text for text in report.warnings)


def test_12_broken_links_between_calls_and_results_do_not_lose_or_repeat_a_turn():
    (trajectory,), _ = edge("12_broken_linkage.jsonl")
    assert text_of(trajectory, Kind.THOUGHT) == "Look.More."
    assert text_of(trajectory, Kind.OBSERVATION) == "orphanno cause/calc"


def test_13_text_the_scaffold_wrote_is_not_the_models(own):
    (trajectory,), _ = edge("13_scaffold_text.json")
    action = "\n\n<function=Bash>\n<parameter=command>ls</parameter>\n</function>"
    assert own(trajectory) == [("action", action)]
    assert "sent by rule" in text_of(trajectory, Kind.CONTEXT)


def test_14_reasoning_is_counted_once_and_hidden_reasoning_is_reported():
    (trajectory,), _ = edge("14_reasoning.jsonl")
    thoughts = [s.text for m in trajectory.messages for s in m.segments if s.kind is Kind.THOUGHT]
    assert thoughts == [
        "<think>\nSame.\n</think>\n\nLook.",
        "Same text",
        "no opening tag</think>Look.",
        "<think>never closed",
        "Go.",
        "<think>\nOther.\n</think>\n\nApart.",
    ]
    assert "encrypted" in warnings_of(trajectory)


def test_15_control_bytes_are_kept_and_a_byte_order_mark_is_not_text():
    (trajectory,), _ = edge("15_control_bytes.jsonl")
    context, turn, result = (m.text for m in trajectory.messages)
    assert context == "a\r\nb\rc"
    assert turn.startswith("\x1b[31mred\x1b[0m\x00\r\n\r\n<function=bash>\r\n")
    assert result == "10%\r20%\r\n"
    assert trajectory.messages[1].segments[0].text == "\x1b[31mred\x1b[0m\x00"


def test_16_a_row_that_is_a_prefix_of_another_is_not_counted_twice():
    (trajectory,), report = edge("16_prefixes.jsonl")
    assert sum(m.generated for m in trajectory.messages) == 2
    assert (
        report.skipped["earlier episode"]
        .examples[0]
        .endswith("16_prefixes.jsonl:2: a later episode of the trial repeats this row")
    )


def test_17_compressed_and_packed_containers_are_read():
    (row,), _ = edge("17_rows.jsonl.gz")
    deflated, _ = edge("17_deflate.eval")
    packed, _ = edge("17_zstd.eval")
    assert row.id == "good-1"
    assert [t.id for t in packed] == ["owner__repo-15_epoch_1", "owner__repo-15_epoch_2"]
    assert deflated[0].messages == packed[0].messages  # of two members of one name the last counts
    assert packed[0].messages[1].text == "Fix the bug in calc.py."  # stored as an attachment


def test_17_a_git_lfs_pointer_is_explained():
    with pytest.raises(DataError, match=r"Git LFS pointer .* `git lfs pull`"):
        edge("17_lfs_pointer.jsonl")


def test_18_pictures_become_place_holders_and_their_bytes_are_no_characters():
    (trajectory,), _ = edge("18_images.jsonl")
    assert trajectory.messages[0].text == "Fix the bug in calc.py.\n[image]"
    assert trajectory.messages[2].text == "[image]\n[image]"
    assert trajectory.messages[2].segments[0].kind is Kind.OBSERVATION
    assert "(3 times)" in warnings_of(trajectory)


def test_19_outcomes_of_every_type_become_true_false_or_unknown():
    kept, _ = edge("19_outcomes.jsonl")
    yes, no, unknown = True, False, None
    expected = [yes, no, yes, no, unknown, yes, no, no, yes, no, unknown, yes, no, unknown, yes, unknown]
    assert [t.resolved for t in kept] == [*expected, unknown, unknown]


def test_20_unknown_roles_and_events_are_never_actions(own):
    (roles,), _ = edge("20_unknown_roles.jsonl")
    assert [kind for kind, _ in own(roles)] == ["thought", "action", "thought"]
    assert "rm -rf /" in text_of(roles, Kind.OBSERVATION)
    assert "'critic'" in warnings_of(roles)
    (events,), _ = edge("20_unknown_events.jsonl")
    assert "rm -rf" not in "".join(m.text for m in events.messages)
    assert "BrandNewEvent" in warnings_of(events)


def test_every_number_of_the_catalogue_has_a_fixture():
    numbers = {path.name[:2] for path in EDGE.iterdir()}
    assert numbers == {f"{n:02}" for n in range(1, 21)}


def test_load_of_the_folder_of_odd_inputs_reads_what_can_be_read():
    assert len(load(str(EDGE), on_error="skip")) == 41
