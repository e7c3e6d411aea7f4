#!/usr/bin/env bash
# pytest 9.2.0 with pytest-xdist 3.8.0; pytest 9.1.1 with the same xdist for comparison.
#
# One expects `--dist loadgroup` to send tests with the same `xdist_group` mark to one worker, whatever their files, so
# that they can share what is expensive or exclusive: a server, a port, a database.
#
# Under pytest 9.2 the marks change nothing, and no warning says so. xdist notes the group in the test's id: on each
# worker, `pytest_collection_modifyitems` in xdist/remote.py assigns `id@group` to `item._nodeid`, and sends `item.nodeid`
# to the scheduler, whose `_split_scope` (xdist/scheduler/loadgroup.py) looks for the `@`. Since pytest 9.2 `Node.nodeid`
# (_pytest/nodes.py) is computed from `Node._id`, so that what is assigned to `_nodeid` is never read, the ids come
# without a group, and each test is its own.
#
# It matters to every suite that relies on the marks: tests that must not run at once do run at once, and fixtures of a
# session are made by every worker. What fails then, fails now and then.
#
# Seen (Python 3.11, Linux):
#   pytest 9.1.1: the 8 tests of one xdist_group ran on gw0 (8)
#   pytest 9.2.0: the 8 tests of one xdist_group ran on gw0 (4) gw1 (4)
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
cat >test_group.py <<'EOF'
import time, pytest
@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_of_the_group(number):
    time.sleep(0.2)
EOF
cat >conftest.py <<'EOF'
import os

def pytest_runtest_teardown(item):
    with open(os.environ["WHERE"], "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], file=file)
EOF

# Prints on how many workers the eight tests of the one group ran.
workers() {
  python3 -m venv "$1"
  "$1/bin/pip" install -qq --disable-pip-version-check "pytest==$1" pytest-xdist==3.8.0
  WHERE=$place/$1.txt "$1/bin/python" -m pytest -q -n 2 --dist loadgroup -p no:cacheprovider test_group.py >"$1.log"
  echo "pytest $1: the 8 tests of one xdist_group ran on" \
    "$(sort "$1.txt" | uniq -c | awk '{print $2 " (" $1 ")"}' | paste -sd ' ')"
  count=$(sort -u "$1.txt" | wc -l)
}

workers 9.1.1
with_older=$count
workers 9.2.0
if [ "$with_older" = 1 ] && [ "$count" = 2 ]; then
  echo "seen: pytest 9.2.0 spreads a group over workers"
else
  echo "no longer seen"
  exit 1
fi
