"""Reads `go test -json` from standard input. Shows go test's own line for each
package, the output of what failed, and every skip; ends with the totals.

Fails when a test failed, when nothing ran, and when a test was skipped for
something that this machine should have: a skip is not a pass.
"""
import json
import os
import re
import shutil
import sys

# Skips that are right here, each with the condition under which it is.
ALLOWED = [
    # The data cannot be part of the repository; a clone alone lacks it.
    (r"EVTPM_TESTDATA", not os.environ.get("EVTPM_TESTDATA")),
    # Rust's registry is where the other reader of IGVM files comes from.
    (r"EVTPM_PEER_IGVM", not shutil.which("cargo")),
    # A system-wide libvirt of a test's own.
    (r"needs root", os.geteuid() != 0),
]


def allowed(reason):
    return any(ok and re.search(pattern, reason) for pattern, ok in ALLOWED)


def main():
    output, counts = {}, {"pass": 0, "fail": 0, "skip": 0}
    refused, broken, summary = [], [], []
    for line in sys.stdin:
        try:
            event = json.loads(line)
            action = event["Action"]
        except (ValueError, KeyError, TypeError):
            sys.stdout.write(line)
            continue
        package, test = event.get("Package") or event.get("ImportPath", ""), event.get("Test")
        key = (package, test)
        if action in ("output", "build-output"):
            text = event["Output"]
            output.setdefault(key, []).append(text)
            if test is None and re.match(r"(ok  |FAIL|---|\?   )\s", text) and "\t" in text:
                summary.append(text)
                print(text, end="", flush=True)
        elif test is None:
            if action in ("fail", "build-fail"):
                broken.append(package)
                said = output.pop(key, [])
                print("".join(l for l in said if l not in summary), end="", flush=True)
        elif action in counts:
            counts[action] += 1
            said = "".join(output.pop(key, []))
            if action == "fail":
                print(said, end="", flush=True)
            elif action == "skip":
                reason = " ".join(
                    l.strip() for l in said.splitlines() if not re.match(r"\s*(===|---)", l)
                )
                mark = "skipped" if allowed(reason) else "SKIPPED, but should have run"
                print(f"{mark}: {package} {test}: {reason}", flush=True)
                if not allowed(reason):
                    refused.append(f"{package} {test}")
    print()
    print("".join(summary), end="")
    print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
    if refused:
        print(f"{len(refused)} skipped for something that this machine should have")
    if broken:
        print("failed: " + " ".join(sorted(set(broken))))
    if counts["fail"] or broken or refused or not counts["pass"]:
        sys.exit(1)


main()
