"""The SSRF table: what may not be contacted, in every spelling that reaches it, and what may."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.request.netguard import Guard, Permit
from dispatcher.core.request.urls import MAX_URL, RULES, Blocked

# Address, and a part of the reason that is given.
DENIED = [
    # IPv4: first and last of every range
    ("0.0.0.0", "this network"),
    ("0.255.255.255", "this network"),
    ("10.0.0.0", "private"),
    ("10.1.2.3", "private"),
    ("10.255.255.255", "private"),
    ("100.64.0.0", "carrier-grade NAT"),
    ("100.100.100.200", "carrier-grade NAT"),  # a cloud's metadata service
    ("100.127.255.255", "carrier-grade NAT"),
    ("127.0.0.0", "loopback"),
    ("127.0.0.1", "loopback"),
    ("127.255.255.255", "loopback"),
    ("168.63.129.16", "cloud platform"),
    ("169.254.0.0", "link-local"),
    ("169.254.169.254", "link-local"),  # most clouds' metadata service
    ("169.254.170.2", "link-local"),
    ("169.254.255.255", "link-local"),
    ("172.16.0.0", "private"),
    ("172.31.255.255", "private"),
    ("192.0.0.0", "IETF protocol assignments"),
    ("192.0.0.8", "IETF protocol assignments"),
    ("192.0.0.9", "IETF protocol assignments"),
    ("192.0.0.170", "IETF protocol assignments"),
    ("192.0.0.192", "IETF protocol assignments"),
    ("192.0.0.255", "IETF protocol assignments"),
    ("192.0.2.0", "documentation"),
    ("192.0.2.255", "documentation"),
    ("192.31.196.0", "AS112"),
    ("192.31.196.255", "AS112"),
    ("192.52.193.0", "multicast tunneling"),
    ("192.52.193.255", "multicast tunneling"),
    ("192.88.99.0", "6to4 relay"),
    ("192.88.99.1", "6to4 relay"),
    ("192.88.99.255", "6to4 relay"),
    ("192.168.0.0", "private"),
    ("192.168.255.255", "private"),
    ("192.175.48.0", "AS112"),
    ("192.175.48.255", "AS112"),
    ("198.18.0.0", "benchmarking"),
    ("198.19.255.255", "benchmarking"),
    ("198.51.100.0", "documentation"),
    ("198.51.100.255", "documentation"),
    ("203.0.113.0", "documentation"),
    ("203.0.113.255", "documentation"),
    ("224.0.0.0", "multicast"),
    ("224.0.0.251", "multicast"),
    ("239.255.255.255", "multicast"),
    ("240.0.0.0", "reserved"),
    ("255.255.255.254", "reserved"),
    ("255.255.255.255", "limited broadcast"),
    # IPv6
    ("::", "unspecified"),
    ("::1", "loopback"),
    ("0:0:0:0:0:0:0:1", "loopback"),
    ("0000:0000:0000:0000:0000:0000:0000:0001", "loopback"),
    ("::0.0.0.1", "loopback"),
    ("::2", "IPv4-compatible"),
    ("100::", "discard-only"),
    ("100::ffff:ffff:ffff:ffff", "discard-only"),
    ("100:0:0:1::", "dummy prefix"),
    ("2001::", "Teredo"),
    ("2001:1::1", "port control"),
    ("2001:1::2", "TURN"),
    ("2001:1::3", "service registration"),
    ("2001:1::4", "IETF protocol assignments"),
    ("2001:2::1", "benchmarking"),
    ("2001:2:0:ffff:ffff:ffff:ffff:ffff", "benchmarking"),
    ("2001:3::1", "multicast tunneling"),
    ("2001:4:112::1", "AS112"),
    ("2001:5::1", "IETF protocol assignments"),
    ("2001:10::1", "ORCHID"),
    ("2001:1f:ffff:ffff:ffff:ffff:ffff:ffff", "ORCHID"),
    ("2001:20::1", "ORCHIDv2"),
    ("2001:2f:ffff:ffff:ffff:ffff:ffff:ffff", "ORCHIDv2"),
    ("2001:30::1", "drone"),
    ("2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "IETF protocol assignments"),
    ("2001:db8::", "documentation"),
    ("2001:DB8::1", "documentation"),
    ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
    ("2620:4f:8000::1", "AS112"),
    ("3ffe::1", "6bone"),
    ("3fff::", "documentation"),
    ("3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
    ("5f00::1", "SRv6"),
    ("5f00:ffff::1", "SRv6"),
    ("fc00::1", "unique local"),
    ("fd00:ec2::254", "unique local"),  # a cloud's metadata service
    ("fd20:ce::254", "unique local"),  # another cloud's
    ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "unique local"),
    ("fe80::1", "link-local"),
    ("fe80::a9fe:a9fe", "link-local"),
    ("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link-local"),
    ("fec0::1", "site-local"),
    ("feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "site-local"),
    ("ff00::", "multicast"),
    ("ff02::1", "multicast"),
    ("ff05::1:3", "multicast"),
    ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast"),
    # IPv6 that is no global unicast
    ("0:1::1", "2000::/3"),
    ("64:ff9b:0:0:0:1:0:0", "2000::/3"),
    ("64:ff9b:2::1", "2000::/3"),
    ("200::1", "2000::/3"),
    ("1fff:ffff::1", "2000::/3"),
    ("4000::1", "2000::/3"),
    ("5eff::1", "2000::/3"),
    ("5f01::1", "2000::/3"),
    ("8000::1", "2000::/3"),
    ("e000::1", "2000::/3"),
    ("fe00::1", "2000::/3"),
    # IPv4 embedded in IPv6: mapped, judged as IPv4
    ("::ffff:127.0.0.1", "127.0.0.1 is not a public address (loopback"),
    ("::ffff:7f00:1", "loopback"),
    ("::FFFF:7F00:0001", "loopback"),
    ("0:0:0:0:0:ffff:127.0.0.1", "loopback"),
    ("::ffff:10.0.0.1", "private"),
    ("::ffff:169.254.169.254", "link-local"),
    ("::ffff:a9fe:a9fe", "link-local"),
    ("::ffff:192.168.1.1", "private"),
    ("::ffff:0.0.0.0", "this network"),
    ("::ffff:255.255.255.255", "limited broadcast"),
    ("::ffff:224.0.0.1", "multicast"),
    ("::ffff:100.64.0.1", "carrier-grade NAT"),
    # compatible and translated, denied as a whole
    ("::127.0.0.1", "IPv4-compatible"),
    ("::7f00:1", "IPv4-compatible"),
    ("::169.254.169.254", "IPv4-compatible"),
    ("::8.8.8.8", "IPv4-compatible"),
    ("::ffff:0:127.0.0.1", "IPv4-translated"),
    ("::ffff:0:7f00:1", "IPv4-translated"),
    ("::ffff:0:8.8.8.8", "IPv4-translated"),
    # NAT64: the well-known prefix by what it leads to, the local one as a whole
    ("64:ff9b::127.0.0.1", "leads to 127.0.0.1"),
    ("64:ff9b::7f00:1", "leads to 127.0.0.1"),
    ("64:ff9b::10.0.0.1", "private"),
    ("64:ff9b::169.254.169.254", "link-local"),
    ("64:ff9b::192.168.0.1", "private"),
    ("64:ff9b::0.0.0.0", "this network"),
    ("64:ff9b::168.63.129.16", "cloud platform"),
    ("64:ff9b:1::127.0.0.1", "local-use NAT64"),
    ("64:ff9b:1::8.8.8.8", "local-use NAT64"),
    ("64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "local-use NAT64"),
    # 6to4, Teredo, ISATAP
    ("2002:7f00:1::", "6to4"),
    ("2002:7f00:1::1", "6to4"),
    ("2002:a00:1::1", "6to4"),
    ("2002:a9fe:a9fe::1", "6to4"),
    ("2002:808:808::1", "6to4"),
    ("2001:0:7f00:1::", "Teredo"),
    ("2001:0:4136:e378:8000:63bf:80ff:fffe", "Teredo"),  # client 127.0.0.1, obfuscated
    ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "Teredo"),
    ("fe80::5efe:127.0.0.1", "link-local"),
    ("2606:4700::5efe:127.0.0.1", "ISATAP"),
    ("2606:4700::200:5efe:127.0.0.1", "ISATAP"),
    ("2606:4700::5efe:7f00:1", "ISATAP"),
    ("2606:4700:1:2:0:5efe:808:808", "ISATAP"),
    # not addresses, or not the one spelling of them
    ("", "not an IP address"),
    ("localhost", "not an IP address"),
    ("127.1", "not an IP address"),
    ("127.0.1", "not an IP address"),
    ("2130706433", "not an IP address"),
    ("0x7f000001", "not an IP address"),
    ("0x7f.0.0.1", "not an IP address"),
    ("017700000001", "not an IP address"),
    ("0177.0.0.1", "not an IP address"),
    ("08.8.8.8", "not an IP address"),
    ("8.8.8.08", "not an IP address"),
    ("8.8.8.8.", "not an IP address"),
    ("8.8.8.8 ", "not an IP address"),
    (" 8.8.8.8", "not an IP address"),
    ("8.8.8.8\n", "not an IP address"),
    ("8.8.8.8\0", "not an IP address"),
    ("8.8.8.8:80", "not an IP address"),
    ("8.8.8.8/32", "not an IP address"),
    ("8.8.8.256", "not an IP address"),
    ("-8.8.8.8", "not an IP address"),
    ("\uff11\uff12\uff17.0.0.1", "not an IP address"),
    ("\u0668.8.8.8", "not an IP address"),
    ("[2606:4700::1]", "not an IP address"),
    ("2606:4700:::1", "not an IP address"),
    ("2606:4700::1::1", "not an IP address"),
    ("2606:4700::12345", "not an IP address"),
    ("2606:4700::1%eth0", "zone"),
    ("2606:4700::1%25eth0", "zone"),
    ("fe80::1%lo", "zone"),
    ("8.8.8.8%1", "zone"),
    ("1" * 500, "not an IP address"),
    (":" * 45, "not an IP address"),
]

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "168.63.129.17",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.0.3.0",
    "192.88.98.255",
    "192.88.100.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.99.255",
    "198.51.101.0",
    "203.0.112.255",
    "203.0.114.0",
    "223.255.255.255",
    "2000::1",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:db9::1",
    "2003::1",
    "2606:4700:4700::1111",
    "2606:4700::5eff:127.0.0.1",
    "2606:4700::100:5efe:127.0.0.1",
    "2606:4700:0:0:5efe:1:7f00:1",
    "2620:4f:8001::1",
    "3ffd::1",
    "3fff:1000::1",
    "::ffff:8.8.8.8",
    "::ffff:808:808",
    "64:ff9b::8.8.8.8",
    "64:ff9b::808:808",
]

# URL, rule, and what the message must contain (the canonical spelling, where there is one).
REFUSED = [
    # schemes
    ("", "scheme", "https://"),
    ("example.com", "scheme", "https://"),
    ("example.com:8443/x", "scheme", "https://"),
    ("localhost:8443", "scheme", "https://"),
    ("//example.com/x", "scheme", "https://"),
    ("/x", "scheme", "https://"),
    ("://example.com", "scheme", "https://"),
    ("1https://example.com", "scheme", "https://"),
    ("ftp://example.com", "scheme", "ftp"),
    ("file:///etc/passwd", "scheme", "file"),
    ("gopher://127.0.0.1:6379/_x", "scheme", "gopher"),
    ("javascript:alert(1)", "scheme", "https://"),
    ("data:text/plain,x", "scheme", "https://"),
    ("unix:///run/x.sock", "scheme", "unix"),
    ("http+unix://%2Frun%2Fx.sock/x", "scheme", "http+unix"),
    ("httpss://example.com", "scheme", "httpss"),
    ("ws://example.com", "scheme", "ws"),
    ("jar:https://example.com!/", "scheme", "https://"),
    ("url:https://example.com", "scheme", "https://"),
    ("http://example.com", "https_only", "https"),
    ("HTTP://example.com", "https_only", "https"),
    # what parsers repair, each in its own way
    ("https:example.com", "syntax", "two slashes"),
    ("https:/example.com", "syntax", "two slashes"),
    ("https:///example.com", "host", "no host"),
    ("https:////example.com", "host", "no host"),
    ("https://", "host", "no host"),
    ("https://:443/", "host", "no host"),
    ("https://?x", "host", "no host"),
    ("https:\\\\example.com", "characters", "U+005C"),
    ("https://example.com\\@127.0.0.1/", "characters", "U+005C"),
    ("https://example.com\\.evil.example/", "characters", "U+005C"),
    (" https://example.com", "characters", "U+0020"),
    ("https://example.com ", "characters", "U+0020"),
    ("https://exam ple.com", "characters", "U+0020"),
    ("https://example.com/a b", "characters", "U+0020"),
    ("https://example.com\t/", "characters", "U+0009"),
    ("ht\ntps://example.com", "characters", "U+000A"),
    ("https://example.com/\r\nX: y", "characters", "U+000D"),
    ("https://example.com/?a=\nb", "characters", "U+000A"),
    ("https://example.com/\0", "characters", "U+0000"),
    ("https://example.com\0.evil.example/", "characters", "U+0000"),
    ("https://example.com/\x7f", "characters", "U+007F"),
    ("https://example.com/\x85", "characters", "U+0085"),
    ("https://example.com/\xa0", "characters", "U+00A0"),
    ("https://example.com/\u2028", "characters", "U+2028"),
    ("https://exam\xadple.com/", "characters", "U+00AD"),
    ("https://exam\u200bple.com/", "characters", "U+200B"),
    ("https://\u202eexample.com/", "characters", "U+202E"),
    ("\ufeffhttps://example.com/", "characters", "U+FEFF"),
    ("https://example.com/\ud800", "characters", "U+D800"),
    ("https://exam\ufffdple.com/", "characters", "U+FFFD"),
    ("https://example.com#", "fragment", "fragment"),
    ("https://example.com/#x", "fragment", "fragment"),
    ("https://example.com#@127.0.0.1/", "fragment", "fragment"),
    ("https://example.com/?a=1#b", "fragment", "fragment"),
    ("https://example.com/%", "syntax", "%25"),
    ("https://example.com/%0", "syntax", "%25"),
    ("https://example.com/%zz", "syntax", "%25"),
    ("https://example.com/?a=%u0041", "syntax", "%25"),
    # credentials
    ("https://user@example.com/", "userinfo", "credentials"),
    ("https://user:secret@example.com/", "userinfo", "headers"),
    ("https://@example.com/", "userinfo", "credentials"),
    ("https://:@example.com/", "userinfo", "credentials"),
    ("https://example.com@127.0.0.1/", "userinfo", "credentials"),
    ("https://example.com:443@127.0.0.1/", "userinfo", "credentials"),
    ("https://a@b@example.com/", "userinfo", "credentials"),
    # ports
    ("https://example.com:/", "port", "decimal"),
    ("https://example.com:0/", "port", "decimal"),
    ("https://example.com:0443/", "port", "leading zeros"),
    ("https://example.com:+443/", "port", "decimal"),
    ("https://example.com:-1/", "port", "decimal"),
    ("https://example.com:0x1bb/", "port", "decimal"),
    ("https://example.com:443a/", "port", "decimal"),
    ("https://example.com:\uff14\uff14\uff13/", "port", "decimal"),
    ("https://example.com:\u0664\u0664\u0663/", "port", "decimal"),
    ("https://example.com:65536/", "port", "65536"),
    ("https://example.com:99999/", "port", "99999"),
    ("https://example.com:100000/", "port", "decimal"),
    ("https://example.com:22/", "port", "network.ports"),
    ("https://example.com:25/", "port", "network.ports"),
    ("https://example.com:53/", "port", "network.ports"),
    ("https://example.com:1023/", "port", "network.ports"),
    ("https://[2606:4700::1]:22/", "port", "network.ports"),
    ("https://[2606:4700::1]:/", "port", "decimal"),
    ("https://example.com:443:443/", "syntax", "colon"),
    # addresses as they stand
    ("https://127.0.0.1/", "address", "loopback"),
    ("https://127.0.0.1:8443/", "address", "loopback"),
    ("https://0.0.0.0/", "address", "this network"),
    ("https://169.254.169.254/latest/meta-data/", "address", "link-local"),
    ("https://10.0.0.1/", "address", "network.allow"),
    ("https://[::1]/", "address", "loopback"),
    ("https://[::]/", "address", "unspecified"),
    ("https://[0:0:0:0:0:0:0:1]:8443/", "address", "loopback"),
    ("https://[fe80::1]/", "address", "link-local"),
    ("https://[FD00::1]/", "address", "unique local"),
    ("https://[::127.0.0.1]/", "address", "IPv4-compatible"),
    ("https://[64:ff9b::7f00:1]/", "address", "127.0.0.1"),
    ("https://[2002:7f00:1::]/", "address", "6to4"),
    # other spellings of IPv4, each told its canonical form
    ("https://127.1/", "notation", "127.0.0.1"),
    ("https://127.0.1/", "notation", "127.0.0.1"),
    ("https://127.65535/", "notation", "127.0.255.255"),
    ("https://2130706433/", "notation", "127.0.0.1"),
    ("https://0x7f000001/", "notation", "127.0.0.1"),
    ("https://0X7F000001/", "notation", "127.0.0.1"),
    ("https://0x7f.0.0.1/", "notation", "127.0.0.1"),
    ("https://0x7f.0x0.0x0.0x1/", "notation", "127.0.0.1"),
    ("https://017700000001/", "notation", "127.0.0.1"),
    ("https://0177.0.0.1/", "notation", "127.0.0.1"),
    ("https://0177.0.0.01/", "notation", "127.0.0.1"),
    ("https://0127.0.0.1/", "notation", "87.0.0.1"),
    ("https://127.0.0.0x1/", "notation", "127.0.0.1"),
    ("https://127.0.0.01/", "notation", "127.0.0.1"),
    ("https://127.0.0.1./", "notation", "127.0.0.1"),
    ("https://0/", "notation", "0.0.0.0"),
    ("https://0x/", "notation", "0.0.0.0"),
    ("https://00/", "notation", "0.0.0.0"),
    ("https://4294967295/", "notation", "255.255.255.255"),
    ("https://0xa9fea9fe/", "notation", "169.254.169.254"),
    ("https://2852039166/", "notation", "169.254.169.254"),
    ("https://0251.0376.0251.0376/", "notation", "169.254.169.254"),
    ("https://134744072/", "notation", "8.8.8.8"),
    ("https://\uff11\uff12\uff17.0.0.1/", "notation", "127.0.0.1"),
    ("https://\u2460\u2461\u2466.0.0.1/", "notation", "127.0.0.1"),
    ("https://127\u30020\u30020\u30021/", "notation", "127.0.0.1"),
    ("https://127\uff0e0\uff0e0\uff0e1/", "notation", "127.0.0.1"),
    ("https://\U0001d7cf\U0001d7d0\U0001d7d5.0.0.1/", "notation", "127.0.0.1"),
    ("https://0\uff587f000001/", "notation", "127.0.0.1"),
    # numbers that are no address
    ("https://256.0.0.1/", "notation", "not an IPv4 address"),
    ("https://127.0.0.256/", "notation", "not an IPv4 address"),
    ("https://1.2.3.4.5/", "notation", "not an IPv4 address"),
    ("https://1.2.3/4.5", "notation", "1.2.0.3"),
    ("https://4294967296/", "notation", "not an IPv4 address"),
    ("https://0x100000000/", "notation", "not an IPv4 address"),
    ("https://example.1/", "notation", "not an IPv4 address"),
    ("https://example.0x7f/", "notation", "not an IPv4 address"),
    ("https://08.8.8.8/", "notation", "not an IPv4 address"),
    ("https://09/", "notation", "not an IPv4 address"),
    ("https://1..2/", "notation", "not an IPv4 address"),
    ("https://" + "1" * 200 + "/", "notation", "not an IPv4 address"),
    # IPv6 spellings
    ("https://::1/", "notation", "[::1]"),
    ("https://2606:4700::1/", "notation", "[2606:4700::1]"),
    ("https://fe80::1:8443/", "notation", "[fe80::1:8443]"),
    ("https://[::ffff:127.0.0.1]/", "notation", "127.0.0.1"),
    ("https://[::ffff:7f00:1]/", "notation", "127.0.0.1"),
    ("https://[::ffff:8.8.8.8]/", "notation", "8.8.8.8"),
    ("https://[fe80::1%25eth0]/", "notation", "zone"),
    ("https://[fe80::1%eth0]/", "notation", "zone"),
    ("https://[2606:4700::1%251]/", "notation", "zone"),
    ("https://[v1.fe80::1]/", "notation", "IPvFuture"),
    ("https://[vF.x]/", "notation", "IPvFuture"),
    ("https://[127.0.0.1]/", "notation", "not an IPv6 address"),
    ("https://[example.com]/", "notation", "not an IPv6 address"),
    ("https://[]/", "notation", "not an IPv6 address"),
    ("https://[:]/", "notation", "not an IPv6 address"),
    ("https://[[::1]]/", "syntax", "brackets"),
    ("https://[::1/", "syntax", "brackets"),
    ("https://[::1]x/", "syntax", "brackets"),
    ("https://[::1].example.com/", "syntax", "brackets"),
    ("https://x[::1]/", "syntax", "colon"),
    ("https://\uff3b::1]/", "syntax", "colon"),
    # names
    ("https://%6c%6f%63alhost/", "notation", "percent"),
    ("https://127.0.0.1%2f.example.com/", "notation", "percent"),
    ("https://example.com%00.evil.example/", "notation", "percent"),
    ("https://example.com%23@evil.example/", "userinfo", "credentials"),
    ("https://example.com./", "notation", "example.com"),
    ("https://EXAMPLE.com./", "notation", "example.com"),
    ("https://localhost./", "notation", "localhost"),
    ("https://example.com../", "notation", "example.com"),
    ("https://./", "notation", "dot"),
    ("https://.example.com/", "host", "empty part"),
    ("https://example..com/", "host", "empty part"),
    ("https://-example.com/", "host", "hyphens"),
    ("https://example-.com/", "host", "hyphens"),
    ("https://exa!mple.com/", "host", "letters"),
    ("https://exa,mple.com/", "host", "letters"),
    ("https://$(id).example.com/", "host", "letters"),
    ("https://'or'1.example.com/", "host", "letters"),
    ("https://example.com;x/", "host", "letters"),
    ("https://a|b.example/", "host", "letters"),
    ("https://{host}/", "host", "letters"),
    ("https://<host>/", "host", "letters"),
    ("https://*.example.com/", "host", "letters"),
    ("https://" + "a" * 64 + ".example/", "length", "longer"),
    ("https://" + "a." * 126 + "example/", "length", "longer"),
    ("https://" + "a" * 5000 + "/", "length", "longer"),
    ("https://example.com/" + "a" * MAX_URL, "length", "longer"),
    ("https://example.com/" + "\xe9" * (MAX_URL // 3), "length", "percent-encoded"),
    # look-alikes and IDNA
    ("https://\u24d4xample.com/", "notation", "example.com"),
    ("https://\uff45xample.com/", "notation", "example.com"),
    ("https://example\uff0ecom/", "notation", "example.com"),
    ("https://example\u3002com/", "notation", "example.com"),
    ("https://\u212aelvin.example/", "notation", "kelvin.example"),
    ("https://\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54/", "notation", "localhost"),
    ("https://\uff58n--bcher-kva.example/", "notation", "xn--bcher-kva.example"),
    ("https://xn--/", "host", "hyphens"),
    ("https://xn--a/", "idna", "xn--a"),
    ("https://xn--example-.com/", "host", "hyphens"),
    ("https://xn--n3h.example/", "idna", "xn--n3h"),
    ("https://\u2603.example/", "idna", "u2603"),
    ("https://\u2100.example/", "idna", "u2100"),
    ("https://\u0661\u0662\u0667.0.0.1/", "idna", "u0661"),
    ("https://\u05d0a1.example/", "idna", "not a valid"),
    ("https://\u0301x.example/", "idna", "not a valid"),
    ("https://example.com\uff0fpath/", "idna", "not a valid"),
    ("https://example.com\uff03@evil.example/", "userinfo", "credentials"),
    ("https://example.com\uff20evil.example/", "idna", "not a valid"),
    ("https://" + "\xe9" * 63 + ".example/", "idna", "not a valid"),
]

ACCEPTED = [
    ("https://example.com", "example.com", 443, "/", "example.com"),
    ("https://example.com/", "example.com", 443, "/", "example.com"),
    ("https://example.com:443/", "example.com", 443, "/", "example.com"),
    ("https://example.com:8443/hook", "example.com", 8443, "/hook", "example.com:8443"),
    ("https://example.com:80/", "example.com", 80, "/", "example.com:80"),
    ("https://example.com:65535", "example.com", 65535, "/", "example.com:65535"),
    ("HTTPS://EXAMPLE.Com/Hook", "example.com", 443, "/Hook", "example.com"),
    ("https://example.com?x=1", "example.com", 443, "/?x=1", "example.com"),
    ("https://example.com?", "example.com", 443, "/?", "example.com"),
    ("https://example.com/a?b?c=/d:@", "example.com", 443, "/a?b?c=/d:@", "example.com"),
    ("https://example.com//a//b", "example.com", 443, "//a//b", "example.com"),
    ("https://example.com/a/../b/./c", "example.com", 443, "/a/../b/./c", "example.com"),
    ("https://example.com/a@b:c", "example.com", 443, "/a@b:c", "example.com"),
    ("https://example.com/%2e%2E/%0d%0a", "example.com", 443, "/%2e%2E/%0d%0a", "example.com"),
    ("https://example.com/\xe9?\xfc", "example.com", 443, "/%C3%A9?%C3%BC", "example.com"),
    ("https://example.com/\u65e5\u672c", "example.com", 443, "/%E6%97%A5%E6%9C%AC", "example.com"),
    ("https://example.com/\U0001f600", "example.com", 443, "/%F0%9F%98%80", "example.com"),
    (
        'https://example.com/a[0]={b}|^`"<>',
        "example.com",
        443,
        "/a%5B0%5D=%7Bb%7D%7C%5E%60%22%3C%3E",
        "example.com",
    ),
    ("https://example.com/?a[]=1", "example.com", 443, "/?a%5B%5D=1", "example.com"),
    ("https://localhost/", "localhost", 443, "/", "localhost"),
    ("https://my_service:8080/", "my_service", 8080, "/", "my_service:8080"),
    ("https://_dmarc.example.com/", "_dmarc.example.com", 443, "/", "_dmarc.example.com"),
    ("https://r3---sn-x.example/", "r3---sn-x.example", 443, "/", "r3---sn-x.example"),
    ("https://1password.example/", "1password.example", 443, "/", "1password.example"),
    ("https://127.0.0.1.example/", "127.0.0.1.example", 443, "/", "127.0.0.1.example"),
    ("https://1.2.3.4a/", "1.2.3.4a", 443, "/", "1.2.3.4a"),
    ("https://8.8.8.8/", "8.8.8.8", 443, "/", "8.8.8.8"),
    ("https://8.8.8.8:8443/", "8.8.8.8", 8443, "/", "8.8.8.8:8443"),
    ("https://[2606:4700::1]/", "2606:4700::1", 443, "/", "[2606:4700::1]"),
    ("https://[2606:4700:0:0:0:0:0:ABCD]:8443/", "2606:4700::abcd", 8443, "/", "[2606:4700::abcd]:8443"),
    ("https://[64:ff9b::8.8.8.8]/", "64:ff9b::808:808", 443, "/", "[64:ff9b::808:808]"),
    ("https://b\xfccher.example/", "xn--bcher-kva.example", 443, "/", "xn--bcher-kva.example"),
    ("https://B\xdcCHER.Example/", "xn--bcher-kva.example", 443, "/", "xn--bcher-kva.example"),
    ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, "/", "xn--bcher-kva.example"),
    ("https://XN--BCHER-KVA.example/", "xn--bcher-kva.example", 443, "/", "xn--bcher-kva.example"),
    ("https://fa\xdf.example/", "xn--fa-hia.example", 443, "/", "xn--fa-hia.example"),
    ("https://\u4f8b\u3048.jp/", "xn--r8jz45g.jp", 443, "/", "xn--r8jz45g.jp"),
    ("https://a_b.b\xfccher.example/", "a_b.xn--bcher-kva.example", 443, "/", "a_b.xn--bcher-kva.example"),
    ("https://" + "a" * 63 + ".example/", "a" * 63 + ".example", 443, "/", "a" * 63 + ".example"),
]


def refusal(call: Callable[..., object], *arguments: object) -> Blocked:
    with pytest.raises(Blocked) as caught:
        call(*arguments)
    assert caught.value.rule in RULES
    return caught.value


def test_the_table_has_at_least_200_rows_of_each_kind_worth_having() -> None:
    assert len(DENIED) + len(PUBLIC) >= 200
    assert len(REFUSED) + len(ACCEPTED) >= 200


T = TypeVar("T")


def outcome(call: Callable[..., T], *arguments: object) -> T | Blocked:
    try:
        return call(*arguments)
    except Blocked as blocked:
        return blocked


@pytest.mark.parametrize(("address", "reason"), DENIED)
def test_an_address_that_is_not_public_is_denied_and_the_reason_named(address: str, reason: str) -> None:
    blocked = refusal(Guard().check_address, address)
    assert blocked.rule == "address"
    assert reason in str(blocked)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_contacted(address: str) -> None:
    guard = Guard()
    guard.check_address(address)
    guard.check_address(address)  # from the cache


@pytest.mark.parametrize(
    "address", [row[0] for row in DENIED if "not an IP" not in row[1] and "%" not in row[0]]
)
def test_a_denied_literal_is_refused_in_a_url_too(address: str) -> None:
    literal = f"[{address}]" if ":" in address else address
    assert refusal(Guard().check_url, f"https://{literal}/").rule in {"address", "notation"}


@pytest.mark.parametrize(
    "cidr", ["10.0.0.1/8", "10.0.0.0/33", "localhost", "", "::1/129", "10.0.0.0-10.0.0.5"]
)
def test_a_cidr_that_is_none_is_named_with_its_setting(cidr: str) -> None:
    with pytest.raises(ValueError, match="allow: "):
        Guard(allow=[cidr])
    with pytest.raises(ValueError, match="deny: "):
        Guard(deny=[cidr])


@pytest.mark.parametrize(
    ("allow", "address", "passes"),
    [
        (["127.0.0.0/8"], "127.0.0.1", True),
        (["127.0.0.0/8"], "::ffff:127.0.0.1", True),  # the same packet, since the kernel sends IPv4
        (["127.0.0.0/8"], "::1", False),
        (["127.0.0.0/8"], "::127.0.0.1", False),
        (["127.0.0.0/8"], "10.0.0.1", False),
        (["127.0.0.0/8"], "64:ff9b::127.0.0.1", False),  # a gateway's loopback, not ours
        (["127.0.0.0/8"], "2002:7f00:1::1", False),
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.2", False),
        (["::ffff:127.0.0.0/104"], "127.0.0.1", True),
        (["::ffff:127.0.0.0/104"], "::ffff:127.0.0.1", True),
        (["::/0"], "::1", True),
        (["::/0"], "::ffff:127.0.0.1", False),
        (["0.0.0.0/0"], "169.254.169.254", True),
        (["0.0.0.0/0"], "::1", False),
        (["fd00::/8"], "fd00::1", True),
        (["fd00::/8"], "fc00::1", False),
        (["64:ff9b:1::/48"], "64:ff9b:1::10.0.0.1", True),
        (["64:ff9b::/96"], "64:ff9b::10.0.0.1", True),
        (["2002::/16"], "2002:7f00:1::1", True),
        (["::1"], "::1", True),
    ],
)
def test_the_operators_allow_list_wins_over_the_built_in_tables(
    allow: list[str], address: str, passes: bool
) -> None:
    guard = Guard(allow=allow)
    if passes:
        guard.check_address(address)
    else:
        refusal(guard.check_address, address)


@pytest.mark.parametrize(
    ("deny", "address"),
    [
        ("8.8.8.0/24", "8.8.8.8"),
        ("8.8.8.0/24", "::ffff:8.8.8.8"),
        ("8.8.8.0/24", "64:ff9b::8.8.8.8"),
        ("8.8.8.0/24", "::8.8.8.8"),
        ("8.8.8.0/24", "::ffff:0:8.8.8.8"),
        ("8.8.8.0/24", "2002:808:808::1"),
        ("8.8.8.0/24", "2001:0:808:808::1"),  # Teredo server
        ("8.8.8.0/24", "2001:0:4136:e378:8000:63bf:f7f7:f7f7"),  # Teredo client
        ("8.8.8.0/24", "2606:4700::5efe:8.8.8.8"),
        ("8.8.8.0/24", "2606:4700::200:5efe:808:808"),
        ("8.8.8.0/24", "64:ff9b:1::8.8.8.8"),  # RFC 6052: /96
        ("8.8.8.0/24", "64:ff9b:1:808:8:800::"),  # /48
        ("8.8.8.0/24", "64:ff9b:1:8:8:808::"),  # /56
        ("8.8.8.0/24", "64:ff9b:1:0:8:808:800:0"),  # /64
        ("::ffff:0:0/96", "::ffff:1.1.1.1"),
        ("::ffff:8.8.8.0/120", "8.8.8.8"),
        ("::/0", "2606:4700::1"),
        ("2606:4700::/32", "2606:4700::1"),
        ("0.0.0.0/0", "127.0.0.1"),
    ],
)
def test_the_operators_deny_list_wins_over_everything(deny: str, address: str) -> None:
    # Allowed one half at a time, because the whole of IPv4 as ::ffff:0:0/96 stands for the IPv4 lists.
    guard = Guard(allow=["0.0.0.0/0", "::/0"], deny=[deny])
    if deny == "::ffff:0:0/96":
        assert "network.deny" in str(refusal(guard.check_address, "1.1.1.1"))
    assert "network.deny" in str(refusal(guard.check_address, address))


def test_a_denied_range_denies_nothing_else() -> None:
    guard = Guard(deny=["8.8.8.0/24", "2606:4700::/32"])
    for address in ("8.8.9.8", "64:ff9b::8.8.9.8", "2606:4701::1", "::ffff:1.1.1.1"):
        guard.check_address(address)


def test_an_allowed_literal_passes_in_a_url() -> None:
    guard = Guard(allow=["127.0.0.0/8", "::1"], https_only=False)
    assert guard.check_url("http://127.0.0.1:8080/x").host_header == "127.0.0.1:8080"
    assert guard.check_url("http://[::1]:8080/x").host_header == "[::1]:8080"


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "foo.localhost",
        "printer.local",
        "metadata",
        "metadata.google.internal",
        "router.home.arpa",
        "home.arpa",
        "intranet",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "vault.service.consul",
        "wiki.corp",
        "nas.lan",
        "127.0.0.1",
        "::1",
        "10.0.0.1",
    ],
)
def test_a_name_of_the_inside_is_refused_where_a_proxy_resolves(name: str) -> None:
    refusal(Guard().check_name, name)
    Guard().check_name("hooks.example.com")
    refusal(Guard().permit_by_proxy, name, ["192.0.2.1"])
    Guard(allow=["0.0.0.0/0", "::/0"]).check_name(name)


def test_a_permit_names_what_was_checked_and_nobody_else_makes_one() -> None:
    guard = Guard()
    permit = guard.permit("hooks.example.com", ["10.0.0.1", "8.8.8.8", "::1", "2606:4700::1"])
    assert (permit.host, permit.addresses) == ("hooks.example.com", ("8.8.8.8", "2606:4700::1"))
    refusal(guard.permit, "hooks.example.com", ["10.0.0.1", "::1"])
    refusal(guard.permit, "hooks.example.com", [])
    with pytest.raises(TypeError):
        Permit(None, "10.0.0.1", ["10.0.0.1"])  # type: ignore[arg-type]


@given(st.one_of(st.text(), st.ip_addresses().map(str), st.text("0123456789abcdef:.x%[]", max_size=46)))
def test_any_string_as_an_address_is_refused_or_public(address: str) -> None:
    blocked = outcome(Guard().check_address, address)
    if isinstance(blocked, Blocked):
        assert blocked.rule == "address"
    else:
        found = ip_address(address)
        mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
        assert (mapped or found).is_global or address.lower().startswith("64:ff9b:")
        assert not (mapped or found).is_multicast


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_never_more_reachable_than_itself(inner: IPv4Address) -> None:
    guard = Guard()
    public = outcome(guard.check_address, str(inner)) is None
    value = int(inner)
    for disguise, judged_by_itself in (
        (0xFFFF << 32 | value, True),
        (0x64FF9B << 96 | value, True),
        (value, False),
        (0xFFFF0000 << 32 | value, False),
        (0x64FF9B0001 << 80 | value, False),
        (0x2002 << 112 | value << 80 | 1, False),
        (0x20010000 << 96 | value << 64 | 1, False),
        (0x20010000 << 96 | 0x08080808 << 64 | (~value & 0xFFFFFFFF), False),
        (0x26064700 << 96 | 0x5EFE << 32 | value, False),
        (0x26064700 << 96 | 0x02005EFE << 32 | value, False),
    ):
        address = str(IPv6Address(disguise))
        if public and judged_by_itself:
            guard.check_address(address)
        else:
            refusal(guard.check_address, address)
