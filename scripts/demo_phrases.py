"""What the scripted agent says. Slots: {target}, {tests}, {func}, {symptom}, {other}, {pattern}."""

from __future__ import annotations

__all__ = ["PHRASES", "SYSTEM", "TASKS"]

SYSTEM = (
    "You are a programmer with a bash shell and an editor (tools: bash, str_replace_editor, submit). "
    "Think first, then make exactly one call."
)

TASKS = [
    "The repository is in /testbed. Please fix this issue:\n\n<issue>\n{issue}\n</issue>\n\n"
    "All of `python runtests.py` must pass.",
    "Fix the following issue in /testbed and submit when the tests (`python runtests.py`) pass.\n\n{issue}",
    "<issue>\n{issue}\n</issue>\n\nThe code is in /testbed; "
    "tests are run with `python runtests.py`. Do not change the tests.",
]

PHRASES: dict[str, list[str]] = {
    "explore": [
        "I'll start by looking at what is in the repository.",
        "Let me see which files there are.",
        "First an overview of the code.",
        "Let me get my bearings before I touch `{func}`.",
        "I don't know this repository yet, so I'll list its files.",
        "The issue is about `{func}`. Where does it live?",
        "Let's look around first.",
        "To begin with, the layout of the project.",
    ],
    "search": [
        "Where is `{func}` defined, and who uses it?",
        "Let me search for `{func}`.",
        "I'll find every place that mentions `{func}`.",
        "Next: the definition of `{func}` and its callers.",
        "A quick grep will show where `{func}` is used.",
    ],
    "read": [
        "Now the code itself.",
        "`{target}` is where `{func}` is defined, so I'll read it.",
        "Let me read `{target}`.",
        "I'll look at `{target}` closely.",
        "The bug should be in `{target}`.",
        "Let's see how `{func}` works.",
        "On to the source of `{func}`.",
    ],
    "read_other": [
        "`{other}` belongs to this as well.",
        "I also want to know what `{other}` does before I change anything.",
        "Let me check `{other}`, it may depend on this.",
        "A look at the other module, `{other}`.",
    ],
    "read_tests": [
        "What do the tests expect?",
        "Let me see what the tests say about it.",
        "The tests will tell which behaviour is wanted.",
        "I'll read the tests before deciding on a fix.",
    ],
    "baseline": [
        "Which tests fail at the moment?",
        "Let me run the tests to see the current state.",
        "I'll run the tests first, so I can compare later.",
        "Before changing anything, a run of the tests.",
    ],
    "reproduce": [
        "Let me reproduce the problem: {symptom}.",
        "I want to see it fail before I fix it.",
        "A short script should show that {symptom}.",
        "I'll reproduce what the issue describes.",
        "Can I reproduce it? The claim is that {symptom}.",
        "Let me confirm the report with a small script.",
    ],
    "create": [
        "I'll write a script that shows the problem, so that I can run it again after the fix.",
        "A file with the example of the issue will be handy, before and after.",
        "Let me put the example into a script, reproduce.py.",
        "First I'll create a small reproduction.",
    ],
    "run": ["Run it.", "Now I run the script.", "Let's see what it prints.", "And execute it:"],
    "why": [
        "{why} {do}",
        "That explains it. {why} {do}",
        "Here is the cause. {why}\n\n{do}",
        "Found it: {why} {do}",
        "So {symptom}. {why} {do}",
        "I see. {why} My plan: {do}",
    ],
    "wrong": [
        "{wrong_why}",
        "I think I see it. {wrong_why}",
        "So {symptom}. {wrong_why}",
        "Let me try the obvious. {wrong_why}",
    ],
    "check_wrong": [
        "Let me check that with the tests.",
        "Do the tests agree?",
        "Run the tests.",
        "Now the tests.",
    ],
    "again": [
        "{wrong_after}",
        "Not quite. {wrong_after}",
        "Hm, that was too quick. {wrong_after}",
        "One test still fails. {wrong_after}",
    ],
    "second": [
        "The same change needs a second edit in this file.",
        "One more place in `{target}` has to follow.",
        "That is not all: the other part of `{target}` needs its share.",
    ],
    "rerun": [
        "Does the script behave now?",
        "Let me run the reproduction again.",
        "Back to the reproduction.",
        "Now the same script should print the right thing.",
    ],
    "verify": [
        "Now all the tests.",
        "Let me run the tests.",
        "Time for the whole test suite.",
        "The tests should pass now.",
        "I'll verify the fix with the tests.",
        "Let's see whether anything else broke.",
    ],
    "edge": [
        "It passes. Let me also try some edge cases.",
        "What about unusual input?",
        "I want to be sure about the corner cases too.",
        "A few edge cases, to be safe.",
    ],
    "change": [
        "The project keeps a list of changes, so I add a line.",
        "CHANGES.md should mention the fix.",
        "I'll note the fix in CHANGES.md.",
    ],
    "cleanup": [
        "The script is no longer needed.",
        "Clean up the reproduction.",
        "I'll remove reproduce.py, it is not part of the fix.",
    ],
    "diff": [
        "A last look at the diff.",
        "Let me review what I changed.",
        "I'll check the final diff before I submit.",
    ],
    "submit": [
        "The tests pass. What I did: {do}",
        "Done. The cause was that {symptom}; it is fixed in `{target}`.",
        "Everything passes, I'm submitting.",
        "The fix is in place and the tests pass.\n\n- **cause**: {symptom}\n- **fix**: `{func}` in `{target}`",
        "`{func}` now does what the issue asks for, so I submit.",
    ],
}
