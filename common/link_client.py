"""paho's client as a link needs it: no threads, read in bursts, counted at the socket, leaving in good order."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

if TYPE_CHECKING:
    from common.link_address import BrokerAddress
    from common.link_queues import Outgoing
    from common.link_state import LinkState

CONNECT_TIMEOUT_S = 5.0
HANG_UP_TIMEOUT_S = 1.0  # for the broker after our good-bye, where no longer flush is asked for
MOST_HEADER_BYTES = 1024  # of a packet beside its payload: topic and properties
SESSION_EXPIRY_S = 60  # outlives a lost Wi-Fi connection, not the device (MQTT 5)
LONGEST_EXPIRY_S = 2**32 - 1  # what MQTT 5 can say
UNSENT_BYTES = 131_072  # how far the kernel may run ahead of the wire: the most an activation waits behind
READ_BURST = 64
READ_BYTES = 65_536
MQTT_5, MQTT_311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311


class LinkClient(paho.Client):
    """paho's client, counting bytes at the socket and telling when the socket has nothing more to read."""

    def __init__(self, state: LinkState, protocol: MQTTProtocolVersion) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            state.client_id,
            clean_session=None if protocol == MQTT_5 else True,
            protocol=protocol,
            reconnect_on_failure=False,
        )
        self.link_state = state
        self.starved = True
        self._hang_up_until_s = 0.0
        self.connect_timeout = CONNECT_TIMEOUT_S
        self.on_socket_open = _tune_socket

    @property
    def version_5(self) -> bool:
        """Whether it speaks MQTT 5, which alone knows properties."""
        return self.protocol == MQTT_5

    def aim(self, address: BrokerAddress, *, keepalive_s: int, max_message_bytes: int | None) -> None:
        """Say where ``reconnect`` goes, and what the broker may send (MQTT 5)."""
        properties = None
        if self.version_5:
            properties = _session_expiry(PacketTypes.CONNECT, SESSION_EXPIRY_S)
            if max_message_bytes is not None:
                properties.MaximumPacketSize = max_message_bytes + MOST_HEADER_BYTES
        self.connect_async(address.host, address.port, keepalive_s, properties=properties)

    def send(self, message: Outgoing) -> paho.MQTTMessageInfo:
        """Publish, with what is left of its time where it has one (MQTT 5)."""
        properties = None
        if message.expires_s is not None and self.version_5:
            properties = Properties(PacketTypes.PUBLISH)
            left_s = math.ceil(message.expires_s - time.monotonic())
            properties.MessageExpiryInterval = min(max(1, left_s), LONGEST_EXPIRY_S)
        return self.publish(message.topic, message.payload, message.qos, message.retain, properties)

    def read_burst(self) -> None:
        """Read until the socket is empty or the burst is over (then ``starved`` stays False)."""
        self.starved = False
        for _ in range(READ_BURST):
            if self.socket() is None:
                self.starved = True
            if self.starved:
                return
            self.loop_read()

    def leave(self, until_s: float) -> None:
        """Send the good-bye; close when the broker has hung up, as it then must (MQTT 3.14.4).

        It is given until ``until_s`` on the monotonic clock, and a second at least: the good-bye may have to wait for
        what the kernel holds before it.
        """
        self._hang_up_until_s = max(until_s, time.monotonic() + HANG_UP_TIMEOUT_S)
        self.on_socket_close = self._hear_out
        self.disconnect(properties=_session_expiry(PacketTypes.DISCONNECT, 0) if self.version_5 else None)

    def abort(self) -> None:
        """Close the socket without a word."""
        self.on_socket_close = None
        self._sock_close()
        self.starved = True

    def _hear_out(self, _client: paho.Client, _userdata: Any, sock: Any) -> None:
        # Who closes with messages unread resets the connection; a broker that meets the reset first publishes the will.
        with contextlib.suppress(OSError):
            while (left_s := self._hang_up_until_s - time.monotonic()) > 0:
                sock.settimeout(left_s)
                received = sock.recv(READ_BYTES)
                if not received:
                    return
                self.link_state.bytes_down += len(received)

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            received = super()._sock_recv(bufsize)
        except BlockingIOError:
            self.starved = True
            raise
        self.link_state.bytes_down += len(received)
        return received

    def _sock_send(self, buf: bytes | bytearray) -> int:
        sent = super()._sock_send(buf)
        self.link_state.bytes_up += sent
        return sent


def _tune_socket(_client: paho.Client, _userdata: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    not_sent_low_water = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # Linux and macOS
    if not_sent_low_water is not None:
        sock.setsockopt(socket.IPPROTO_TCP, not_sent_low_water, UNSENT_BYTES)


def _session_expiry(packet: int, seconds: int) -> Properties:
    properties = Properties(packet)
    properties.SessionExpiryInterval = seconds
    return properties
