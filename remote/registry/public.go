package registry

import (
	"net/netip"
	"net/url"
	"strings"
)

// Addresses of the internet, by IANA's registries of special-purpose addresses (RFC 6890 and its updates).
var (
	notPublicV4 = prefixes(
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3")
	publicV6    = netip.MustParsePrefix("2000::/3")
	notPublicV6 = prefixes("2001::/23", "2001:db8::/32", "3fff::/20")
	// These have an IPv4 address in them, to which a router or the kernel may send what is sent there.
	nat64 = netip.MustParsePrefix("64:ff9b::/96")
	sixTo = netip.MustParsePrefix("2002::/16")
)

func prefixes(all ...string) (parsed []netip.Prefix) {
	for _, p := range all {
		parsed = append(parsed, netip.MustParsePrefix(p))
	}
	return parsed
}

// public reports whether an address is one of the whole internet.
func public(ip netip.Addr) bool {
	ip = ip.Unmap()
	b := ip.As16()
	switch {
	case ip.Is4():
		return !within(ip, notPublicV4)
	case nat64.Contains(ip):
		return public(netip.AddrFrom4([4]byte(b[12:16])))
	case sixTo.Contains(ip):
		return public(netip.AddrFrom4([4]byte(b[2:6])))
	}
	return publicV6.Contains(ip) && !within(ip, notPublicV6)
}

func within(ip netip.Addr, all []netip.Prefix) bool {
	for _, p := range all {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// literal returns the address that a URL names as such; ok is false for a name. What is no name, and no address as Go writes them, is an
// address that a proxy may read: 127.1, 0x7f000001, or one of other digits.
func literal(u *url.URL) (ip netip.Addr, ok bool) {
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.WithZone(""), true
	}
	last := host[strings.LastIndex(host, ".")+1:]
	odd := strings.ContainsFunc(host, func(r rune) bool { return r > 127 }) || last == "" || last[0] >= '0' && last[0] <= '9'
	if odd || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return netip.Addr{}, true // an address that is not public
	}
	return netip.Addr{}, false
}
