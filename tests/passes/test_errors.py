"""What the system refuses, as messages whose fix fits the cause."""

from __future__ import annotations

import errno

import pytest

from passes.errors import EnvironmentFault, InputError, system_error


def refused(number, file) -> OSError:
    return OSError(number, "as the system says it", str(file))


def test_a_permission_is_given_where_the_file_is_there(tmp_path):
    there = tmp_path / "a b"
    there.touch()
    error = system_error(refused(errno.EACCES, there))
    assert isinstance(error, InputError)
    assert error.fix == f"chmod u+rwX '{there}', or give another path"
    assert "chmod" not in system_error(refused(errno.EACCES, tmp_path / "absent")).fix
    assert "chmod" not in system_error(refused(errno.EISDIR, there)).fix


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ENOMEM])
def test_a_machine_without_room_is_the_environments(number, tmp_path):
    assert isinstance(system_error(refused(number, tmp_path)), EnvironmentFault)
