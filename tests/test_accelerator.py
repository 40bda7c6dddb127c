"""The script for accelerators: on a CPU with networks of a few numbers."""

import json

import pytest
import scripts

from benchmarks import accelerator, devices, large, timing

TINY = ["--tiny", "--num-seeds", "2", "--minutes", "60"]


def written(path):
    return json.loads(path.read_text())


def test_a_part_that_fails_is_one_line_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    out, seen = tmp_path / "out.json", []

    def broken(flags):
        yield {"what": "before", "ms": 1.0}
        raise RuntimeError("out of\nmemory")

    def sound(flags):
        # What came before is in the file already: a run that is cut off leaves it.
        seen.extend(row["what"] for row in written(out)["rows"])
        yield {"what": "sound", "ms": 2.5}

    parts = {"head": broken, "loop": sound}
    monkeypatch.setattr(accelerator, "PARTS", parts)
    accelerator.main(["--tiny", "--out", str(out), "--parts", *parts])
    report, printed = written(out), capsys.readouterr().out
    assert seen == ["before", "head"]
    assert [row["what"] for row in report["rows"]] == ["before", "head", "sound"]
    assert report["rows"][1]["failed"] == "RuntimeError: out of memory"
    assert "| loop | sound | ms 2.5 |" in printed and "cpu" in report["device"]


def test_no_part_begins_without_time(tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    monkeypatch.setattr(accelerator, "PARTS", {"head": lambda flags: iter([{"what": "head"}])})
    accelerator.main(["--minutes", "0.01", "--out", str(out), "--parts", "head"])
    assert "left out" in written(out)["rows"][0]["failed"]


def test_shares_are_of_the_device_that_is_named():
    sxm, pcie = (devices.peak_of(f"NVIDIA {x}") for x in ("H100 80GB HBM3", "H100 PCIe"))
    assert sxm.half > pcie.half and devices.peak_of("TPU v5 lite").half < sxm.half
    # Of 989e12 FLOP/s and 3.35e12 bytes/s.
    found = devices.shares(sxm, 1e-3, 494.5e9, 3.35e8, half=True)
    assert found == {"share of peak FLOP/s": 0.5, "share of bandwidth": 0.1}
    unknown = devices.shares(devices.peak_of("cpu"), 1e-3, 1e9, 1e8, half=False)
    assert set(unknown.values()) == {"unknown"}


def test_ratios_are_over_the_first(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def lasting(seconds):
        def take(count):
            clock[0] += seconds * count

        return take

    found = timing.in_turn({"ours": lasting(0.1), "theirs": lasting(0.2)}, repeats=3)
    assert found["theirs"] == pytest.approx((0.2, 2.0)) and found["ours"][1] == 1


@pytest.mark.slow
def test_every_part_says_something(tmp_path):
    out = tmp_path / "out.json"
    scripts.run("benchmarks.accelerator", *TINY, "--out", out, check=True)
    rows = written(out)["rows"]
    assert {row["part"] for row in rows} == set(accelerator.PARTS)
    assert not [row for row in rows if "failed" in row and row["what"] != "PyTorch"]


def test_what_is_sent_is_counted_as_a_ring_sends_it():
    text = """
      %a = f32[100] all-reduce(%x), replica_groups=[8,8]<=[64], to_apply=%add
      %b = (f32[4], bf16[8,2]) all-gather(%y, %z), replica_groups=[8,8]<=[8,8]T(1,0), dimensions={0}
      %c = f32[] all-reduce(%v), replica_groups={{0,8},{1,9}}, to_apply=%add
      %d = f32[6] reduce-scatter(%w), replica_groups={{0,1},{2,3}}, dimensions={0}
    """
    inside, across = large.sent_by(text, 64)
    assert inside == pytest.approx(2 * 7 / 8 * 400 + 24)
    assert across == pytest.approx(7 / 8 * (16 + 32) + 2 * 1 / 2 * 4)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("[16,4]<=[64]", (4, False)),
        ("[4,16]<=[64]", (16, True)),
        ("[8,8]<=[8,8]T(1,0)", (8, True)),
        ("[32,2]<=[8,4,2]T(0,2,1)", (2, False)),
        ("mesh['a'=8,'b'=1,'c'=8], device_ids=([8,8]T(1,0)) {'a'}", (8, False)),
        ("mesh['a'=8,'b'=1,'c'=8], device_ids=([8,8]T(1,0)) {'c'}", (8, True)),
        ("mesh['a'=8,'b'=8] {'a'}", (8, True)),
        ("mesh['a'=8,'b'=8] {'b'}", (8, False)),
        ("mesh['a'=8,'b'=8] {'a', 'b'}", (64, True)),
        ("{}", (64, True)),
    ],
)
def test_a_collective_joins_the_devices_that_the_program_says(groups, expected):
    assert large._group(f"%x), replica_groups={groups}, dimensions={{0}}", 64) == expected
    with pytest.raises(ValueError, match="how are these devices grouped"):
        large._group("%x), replica_groups=otherwise, dimensions={0}", 64)


@pytest.mark.slow
def test_larger_meshes_send_more_and_compute_the_same():
    done = scripts.run("benchmarks.large", "--tiny", "--devices", 2, 8, check=True)
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[n, d] for n in ("imagenet", "language") for d in "28"]
    for two, eight in (rows[:2], rows[2:]):
        assert float(eight[3]) == pytest.approx(float(two[3]), rel=0.1)
        assert float(eight[5]) > float(two[5]) > 0
        # A machine has eight devices.
        assert float(eight[6]) == 0
