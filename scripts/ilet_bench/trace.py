"""What a sender did, from a trace of its packets: how often it sent bytes again, and how long it paused.

The trace is the relay's, written before anything is lost or queued: packets are in the order in which they were sent.
"""

import struct
from dataclasses import dataclass

_HEADER = struct.Struct("=IHHiIII")
_RECORD = struct.Struct("=IIII")
_NANOSECONDS = 0xA1B23C4D
_ETHERTYPE_IPV4 = b"\x08\x00"
_TCP = 6

# A sender with something to send that is silent for longer waits for a timer, on a path with a round trip of at most
# half of it.
PAUSE_S = 0.15


class TraceError(Exception):
    """The file is no trace of ours."""


@dataclass(frozen=True)
class Segment:
    """A TCP segment over IPv4: when it was sent, between which (address, port), and which bytes it has."""

    time: float
    source: tuple[str, int]
    target: tuple[str, int]
    sequence: int
    length: int


def segments(content):
    """The TCP segments of a pcap file's content, in order."""
    if len(content) < _HEADER.size or _HEADER.unpack_from(content)[0] != _NANOSECONDS:
        raise TraceError("not a trace of the relay")
    at, found = _HEADER.size, []
    while at < len(content):
        if at + _RECORD.size > len(content):
            raise TraceError("the trace ends in the middle of a packet")
        seconds, nanoseconds, kept, _ = _RECORD.unpack_from(content, at)
        at += _RECORD.size
        if at + kept > len(content):
            raise TraceError("the trace ends in the middle of a packet")
        segment = _segment(content[at:at + kept], seconds + nanoseconds / 1e9)
        at += kept
        if segment is not None:
            found.append(segment)
    return found


def _segment(frame, time):
    """The TCP segment in the beginning of a frame, or None if it is something else."""
    if len(frame) < 34 or frame[12:14] != _ETHERTYPE_IPV4 or frame[23] != _TCP:
        return None
    header = (frame[14] & 15) * 4
    at = 14 + header
    if len(frame) < at + 20:
        return None
    total = int.from_bytes(frame[16:18], "big")
    source_port, target_port, sequence = struct.unpack_from("!HHI", frame, at)
    return Segment(
        time, (_address(frame[26:30]), source_port), (_address(frame[30:34]), target_port), sequence,
        total - header - (frame[at + 12] >> 4) * 4,
    )


def _address(packed):
    return ".".join(map(str, packed))


def figures(found, sender):
    """The figures of what `sender`, an (address, port), sent with data, all connections together."""
    highest, last, sent, again, pauses, longest = {}, {}, 0, 0, 0, 0.0
    for segment in found:
        if segment.source != sender or segment.length <= 0:
            continue
        sent += 1
        peer, end = segment.target, (segment.sequence + segment.length) % (1 << 32)
        if peer in highest:
            # Numbers wrap: what is less than half of them ahead is ahead.
            again += 0 < (highest[peer] - segment.sequence) % (1 << 32) < 1 << 31
            pause = segment.time - last[peer]
            pauses += pause > PAUSE_S
            longest = max(longest, pause)
        if peer not in highest or 0 < (end - highest[peer]) % (1 << 32) < 1 << 31:
            highest[peer] = end
        last[peer] = segment.time
    return {
        "segments_sent": sent, "segments_again": again, "again_share": again / sent if sent else None, "pauses": pauses,
        "longest_pause_ms": longest * 1e3,
    }
