"""Comments are found wherever a program stands in an action: parameters, commands, here-documents, scripts, patches."""

import pytest

from hesnr_tasks.filters import FILTERS
from tests.unit.filters.marked import check

comments = FILTERS["comments"]


def call(name, **parameters):
    body = "".join(f"<parameter={key}>{value}</parameter>\n" for key, value in parameters.items())
    return f"<function={name}>\n{body}</function>"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.py", 'x = "# no"  ⟦# yes⟧'),
        ("a.js", 'x = "// no"; ⟦// yes⟧\n# no'),
        ("a.unknown", "# no\n// no"),
        ("a.json", '{"a": "# no"}'),
        ("bin/tool", "#!/bin/sh\n⟦# yes⟧\nls"),
        ("Dockerfile", "⟦# yes⟧\nFROM x # no"),
        ("a.md", "# no\n\n```python\nx = 1 ⟦# yes⟧\n```\n⟦<!-- yes -->⟧\n"),
        ("a.patch", "--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-x ⟦# old⟧\n+y ⟦# new⟧\n"),
    ],
)
def test_the_file_named_beside_a_value_gives_its_language(path, text):
    for key in ("file_text", "new_str", "old_str", "content", "new_string", "insert_text"):
        check(comments, call("edit", path=path, **{key: text}))
    check(comments, call("Edit", file_path=path, old_string=text))


def test_only_code_parameters_are_code():
    check(comments, call("view", path="a.py", view_range="[1, 2] # no", command="view # no"))
    check(comments, call("grep", pattern="# no", path="a.py"))
    check(comments, call("finish", message="# no"))


def test_editors_without_a_file_name_hold_python_if_it_looks_like_it():
    check(comments, call("edit", search="return 1 ⟦# old⟧", replace="⟦# new⟧\nreturn 2"))
    check(comments, call("insert", text="#include <a.h>\nint x; // no"))
    check(comments, call("insert", text="# a heading"))


@pytest.mark.parametrize("tool", ["bash", "execute_bash", "Bash", "shell", "terminal", "run_command", "local_shell"])
def test_shell_tools(tool):
    check(comments, call(tool, command='ls "# no" ⟦# yes⟧'))


@pytest.mark.parametrize("tool", ["python", "execute_ipython_cell", "ipython", "run_python"])
def test_python_tools(tool):
    check(comments, call(tool, code='print("# no") ⟦# yes⟧\nx = """\n# no\n"""'))


def test_plain_commands_fences_and_tags_are_shell():
    check(comments, "ls ⟦# yes⟧\necho a#b")
    check(comments, "```bash\nls ⟦# yes⟧\n```")
    check(comments, "```python\nx = '''# no''' ⟦# yes⟧\n```")
    check(comments, "<command>\nls ⟦# yes⟧\n</command>")
    check(comments, "<execute_ipython>\nx = {} ⟦# yes⟧\n</execute_ipython>")


@pytest.mark.parametrize(
    "command",
    [
        "cat > x.py <<'EOF'\nx = '# no' ⟦# yes⟧\nEOF\nls ⟦# yes⟧",
        "cat <<EOF > a.js\nlet x; ⟦// yes⟧\n# no\nEOF",
        "cat << 'EOF' | tee -a src/a.go\nx := 1 ⟦// yes⟧\nEOF",
        "sudo tee /etc/x.toml > /dev/null <<EOF\na = '# no' ⟦# yes⟧\nEOF",
        "python - <<'PY'\nprint('# no') ⟦# yes⟧\nPY",
        "python3 <<PY\n⟦# yes⟧\nPY",
        "cat <<PY | python3 -\n⟦# yes⟧\nPY",
        "python script.py <<EOF\n# no: this is data\nEOF",
        "python -m json.tool <<EOF\n# no\nEOF",
        "cat <<EOF\n# no: nobody says what this is\nEOF",
        "cat > notes <<EOF\n#!/usr/bin/env python\nx ⟦# yes⟧\nEOF",
        "bash -s <<'EOF'\ncat > a.rb <<X\ny ⟦# yes⟧\nX\nls ⟦# yes⟧\nEOF",
        "cat <<'A' > a.py && cat <<'B' > b.c\nx ⟦# yes⟧\nA\ny; ⟦// yes # too⟧\nB\n",
        "cd x && cat > y.yml <<-EOF\n\ta: '# no' ⟦# yes⟧\n\tEOF\n",
        "psql db <<EOF\nSELECT '-- no'; ⟦-- yes⟧\nEOF",
        "cat > x.py <<'~X'\nx = 1 ⟦# yes⟧\n X\ny = 2 ⟦# yes⟧",
        "cat > x.py <<'EOF'\nx = 1 ⟦# the delimiter never comes⟧",
    ],
)
def test_here_documents(command):
    check(comments, command)
    check(comments, call("bash", command=command))


@pytest.mark.parametrize(
    "command",
    [
        """python -c 'print("# no") ⟦# yes⟧' ⟦# shell⟧""",
        'python3 -c "\nx = \\"# no\\" ⟦# yes⟧\n"',
        "node -e 'let u = \"http://x\"; ⟦// yes⟧'",
        "timeout 10 docker exec c bash -lc 'ls ⟦# yes⟧'",
        "bash -c 'python -c \"x = 1 ⟦# yes⟧\"'",
        "ruby -e 'puts \"#{x}\" ⟦# yes⟧'",
        "psql -c 'SELECT 1 ⟦-- yes⟧'",
        "python -c $'x = \\'# no\\' ⟦# yes⟧\\ny = 1'",
        "grep -c '# no' file",
        "gcc -c '# no'",
        "echo python -c",
        "sed -e 's/# no//' -e '/^# no/d' f",
        "awk '{ print } # no' f",
    ],
)
def test_scripts_on_the_command_line(command):
    check(comments, command)


PATCH = """\
diff --git a/x.py b/x.py
--- a/x.py
+++ b/x.py
@@ -1,4 +1,4 @@ def f(): # no
 x = '''
-# no
+# nor this
 '''
-y = 1 ⟦# old⟧
+y = 2 ⟦# new⟧
 z = 3 ⟦# context⟧
diff --git a/x.c b/x.c
--- a/x.c
+++ b/x.c
@@ -9 +9,2 @@
+⟦/* two⟧
+⟦   lines */⟧
 #include <no>
--- a/data.json
+++ b/data.json
@@ -1 +1 @@
+// no
"""


def test_patches_by_the_file_in_their_header():
    check(comments, f"git apply <<'EOF'\n{PATCH}EOF")
    check(comments, f"cat > fix.patch <<'EOF'\n{PATCH}EOF")
    check(comments, f"patch -p1 <<'EOF'\n{PATCH}EOF")
    check(comments, call("apply_patch", input=PATCH))
    check(comments, call("edit", path="fix.diff", file_text=PATCH))


def test_the_patch_form_of_apply_patch():
    update = "*** Update File: a/x.py\n@@ # no\n-x ⟦# old⟧\n+y ⟦# new⟧"
    patch = f"*** Begin Patch\n{update}\n*** Add File: y.rs\n+⟦// z⟧\n*** End Patch"
    check(comments, f"<function=apply_patch>\n{patch}\n</function>")
    check(comments, call("shell", input=patch))
    check(comments, f"apply_patch <<'EOF'\n{patch}\nEOF")
    check(comments, f"apply_patch '{patch}'")


def test_json_values_are_decoded_before_they_are_lexed():
    shell = 'echo \\"# no\\" ⟦# yes⟧\\nls'
    check(comments, f'<tool_call>\n{{"name": "bash", "arguments": {{"command": "{shell}"}}}}\n</tool_call>')
    code = "x = '\\u0023 no'\\ny = 1 ⟦\\u0023 yes⟧"
    check(comments, f'<tool_call>{{"name": "edit", "arguments": {{"path": "a.py", "new_str": "{code}"}}}}</tool_call>')
    check(comments, call("shell", command='["bash", "-lc", "ls ⟦# yes⟧\\necho \\"# no\\""]'))
    check(
        comments, call("MultiEdit", file_path="a.py", edits='[{"old_string": "x ⟦# a⟧\\ny", "new_string": "\'# no\'"}]')
    )


def test_the_line_editor_of_swe_agent():
    check(comments, "edit 3:4\nx = 1 ⟦# don't⟧\ny = '# no'\nend_of_edit")


def test_several_calls_are_independent():
    check(comments, call("bash", command="echo 'open ⟦⟧").replace("⟦⟧", "") + "\n" + call("bash", command="ls ⟦# yes⟧"))
