"""What the system refuses, as messages whose fix fits the cause."""

from __future__ import annotations

import errno

import pytest

from passes.errors import EnvironmentFault, InputError, missing_package, system_error


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


def absent(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_package_that_is_not_installed_is_found_behind_what_it_became():
    wrapped = InputError("model m.pt", "cannot be exported", "-", "-")
    wrapped.__cause__ = absent("nowhere.inner")
    for error in (absent("nowhere"), wrapped):
        fault = missing_package(error, "`picosam2 check`")
        assert fault is not None
        assert fault.thing == "package nowhere"
        assert "pip install" in fault.fix


@pytest.mark.parametrize(
    "error",
    [
        absent("passes.nowhere"),
        absent("numpy.nowhere"),
        ValueError("numbers"),
        EnvironmentFault("Java", "is not there", "-", "-"),
    ],
    ids=["ours", "of an installed package", "another error", "says so itself"],
)
def test_what_is_no_missing_package(error):
    assert missing_package(error, "`picosam2 check`") is None
