package volume

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Block is the number of bytes of a block: the unit of the map, and of requests.
const Block = 4096

// A Class says when a flush is acknowledged, and so what can be lost with the node.
type Class string

// The classes.
const (
	// Remote acknowledges a flush when the store has everything: nothing flushed is ever lost.
	Remote Class = "remote"
	// Local acknowledges a flush when this node's disk has everything: a power cut loses nothing flushed; without
	// the node the volume goes back to the last commit, at most MaxAge ago.
	Local Class = "local"
	// Writethrough acknowledges each write as Remote does a flush.
	Writethrough Class = "writethrough"
)

// ParseClass reads a class.
func ParseClass(s string) (Class, error) {
	switch c := Class(s); c {
	case Remote, Local, Writethrough:
		return c, nil
	}
	return "", fmt.Errorf("class %q: want remote, local or writethrough", s)
}

// Head is the one mutable object of a volume. It changes by compare-and-swap only.
type Head struct {
	ID     ID     `json:"id"`
	Name   string `json:"name"`
	Gen    uint64 `json:"gen"`             // rises by one with each write
	Nonce  ID     `json:"nonce"`           // of this write, so that no two are alike
	Recent []ID   `json:"recent_nonces"`   // of the writes before it, the latest first
	Size   int64  `json:"size"`            // bytes
	Block  int    `json:"block"`           // bytes
	Class  Class  `json:"class"`           //
	MaxAge int64  `json:"max_age_seconds"` // after which a write that nobody flushed is committed
	FS     string `json:"fs,omitempty"`    // the file system that mkfs made; "" if none was made

	Epoch   uint64      `json:"epoch"`             // rises with each taking, and with each life of the owner
	Owner   *Owner      `json:"owner,omitempty"`   // who may write; nil for nobody
	Journal *JournalRef `json:"journal,omitempty"` // what may hold acknowledged writes that are not committed

	// Released says how the volume was given up last. It stays until that happens again.
	Released *Released `json:"released,omitempty"`

	Segment uint64     `json:"segment"`        // number of the last segment that counts
	Write   uint64     `json:"write"`          // every write up to this sequence number is committed
	Root    *NodeRef   `json:"root,omitempty"` // of the map as of the last checkpoint
	Tail    segmentSet `json:"tail,omitempty"` // segments since, oldest first

	Created time.Time `json:"created"`

	Mode string `json:"mode,omitempty"` // "", or ModeReadOnly

	// What later versions write, and this one keeps as it is.
	Parents   []ID     `json:"parents,omitempty"`
	Snapshots []string `json:"snapshots,omitempty"`
	Deadlists string   `json:"deadlists,omitempty"`
	Keys      []string `json:"keys,omitempty"`
}

// ModeReadOnly is that of a volume which may not be written to.
const ModeReadOnly = "read-only"

// Owner is one life of a node.
type Owner struct {
	Node        ID `json:"node"`
	Incarnation ID `json:"incarnation"`
}

// JournalRef is a journal on a node's disk, and where its history and the log meet: behind the head's Write follows record Record,
// whose predecessor has the checksum Sum. Both are as of Epoch; later takings may have gone on otherwise, after a power cut. With
// a Record of 0 it is not known.
type JournalRef struct {
	Node   ID     `json:"node"`
	ID     ID     `json:"id"`
	Epoch  uint64 `json:"epoch,omitempty"`
	Record uint64 `json:"record,omitempty"`
	Sum    uint32 `json:"crc32c,omitempty"`
}

// Released is how a volume was given up: in an epoch, with all writes up to one in the store. Whoever did not hear of the end of his
// release finds it here, however much others have written since.
type Released struct {
	Epoch   uint64     `json:"epoch"`
	Write   uint64     `json:"write"`
	Nonce   ID         `json:"nonce"`   // of the release
	Journal JournalRef `json:"journal"` // which is of no use any more, and where it ended
}

// A SegmentRef names a segment.
type SegmentRef struct {
	Seq    uint64 // its place in the log; never used twice by segments that count
	Epoch  uint64 // of who wrote it
	Random uint32 // tells it from segments of the same place that do not count
	Size   uint32 // bytes
	Table  uint32 // offset of its table of extents
}

// Limits of a volume.
const (
	headVersion    = 2        // the first is read: its segments have other checksums
	maxHead        = 64 << 10 // bytes
	recentNonces   = 16
	maxTail        = 256 // segments
	maxSegment     = 32 << 20
	maxSet         = 512 // segments that are listed in one place
	segmentRefSize = 28

	// MinSize and MaxSize bound a volume, in bytes.
	MinSize = 1 << 20
	MaxSize = 64 << 40
)

// segmentSet is packed in JSON: 28 bytes each, in base64.
type segmentSet []SegmentRef

// MarshalText implements encoding.TextMarshaler.
func (s segmentSet) MarshalText() ([]byte, error) {
	p := make([]byte, 0, len(s)*segmentRefSize)
	for _, r := range s {
		p = binary.LittleEndian.AppendUint64(p, r.Seq)
		p = binary.LittleEndian.AppendUint64(p, r.Epoch)
		p = binary.LittleEndian.AppendUint32(p, r.Random)
		p = binary.LittleEndian.AppendUint32(p, r.Size)
		p = binary.LittleEndian.AppendUint32(p, r.Table)
	}
	return base64.StdEncoding.AppendEncode(nil, p), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *segmentSet) UnmarshalText(text []byte) error {
	p, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil {
		return err
	}
	if len(p)%segmentRefSize != 0 || len(p)/segmentRefSize > maxSet {
		return fmt.Errorf("tail of %d bytes", len(p))
	}
	*s = nil
	for ; len(p) > 0; p = p[segmentRefSize:] {
		*s = append(*s, SegmentRef{
			Seq: binary.LittleEndian.Uint64(p), Epoch: binary.LittleEndian.Uint64(p[8:]), Random: binary.LittleEndian.Uint32(p[16:]),
			Size: binary.LittleEndian.Uint32(p[20:]), Table: binary.LittleEndian.Uint32(p[24:]),
		})
	}
	return nil
}

// clone returns a Head that shares nothing that changes.
func (h *Head) clone() *Head {
	c := *h
	c.Recent = slices.Clone(h.Recent)
	c.Tail = slices.Clone(h.Tail)
	return &c
}

// next makes h the successor of what it is a clone of.
func (h *Head) next() {
	h.Recent = append([]ID{h.Nonce}, h.Recent...)
	h.Recent = h.Recent[:min(len(h.Recent), recentNonces)]
	h.Gen++
	h.Nonce = NewID()
}

// sameOwner reports whether nobody has taken the volume between h and other.
func (h *Head) sameOwner(other *Head) bool {
	if h.Epoch != other.Epoch || (h.Owner == nil) != (other.Owner == nil) {
		return false
	}
	return h.Owner == nil || *h.Owner == *other.Owner
}

// removing reports whether a Remove has begun.
func (h *Head) removing() bool { return h.Name == "" }

// wrote reports whether the write with a nonce is this one or one before it.
func (h *Head) wrote(nonce ID) bool {
	return h.Nonce == nonce || slices.Contains(h.Recent, nonce)
}

// encode returns a head's bytes, if it is one that can be read again.
func (h *Head) encode() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("head: %w", err)
	}
	p, err := seal("head", headVersion, h)
	if err == nil && len(p) > maxHead {
		err = fmt.Errorf("head of %d bytes: %d at most", len(p), maxHead)
	}
	return p, err
}

// succeeds fails unless h may follow a head: no number goes back, but for those of a volume that is being removed.
func (h *Head) succeeds(old *Head) error {
	bad := h.ID != old.ID || h.Gen != old.Gen+1 || h.Epoch < old.Epoch || h.Size < old.Size
	if !h.removing() {
		bad = bad || h.Segment < old.Segment || h.Write < old.Write
		if n := len(h.Tail); n > 0 {
			bad = bad || h.Tail[n-1].Seq != h.Segment
		}
	}
	if bad {
		return fmt.Errorf("head %d (epoch %d, segment %d, write %d) cannot follow head %d (epoch %d, segment %d, write %d)",
			h.Gen, h.Epoch, h.Segment, h.Write, old.Gen, old.Epoch, old.Segment, old.Write)
	}
	return nil
}

// meets moves the place where the journal's history and the log meet to a cursor.
func (h *Head) meets(at cursor) {
	if h.Journal != nil {
		h.Journal = &JournalRef{Node: h.Journal.Node, ID: h.Journal.ID, Epoch: h.Epoch, Record: at.seq, Sum: at.prev}
	}
}

// continues fails unless a record of the journal that h names, which comes behind write have, is of the history that h tells of.
func (h *Head) continues(b *batch, epoch, have uint64) error {
	last := b.first + uint64(len(b.entries)) - 1
	if have = max(have, h.Write); b.first > have+1 {
		return fmt.Errorf("%w: writes %d to %d are in neither the store nor the journal: the store was put back to an earlier state",
			ErrLoss, have+1, b.first-1)
	}
	j := h.Journal
	if j == nil || j.Record == 0 || epoch > j.Epoch {
		return nil
	}
	same := b.at.seq != j.Record || b.at.prev == j.Sum
	if behind := b.at.seq >= j.Record; !same || behind != (last > h.Write) || behind && b.first <= h.Write {
		return fmt.Errorf("%w: from record %d on the journal has writes of another history than the store: a copy of this machine has written "+
			"to the volume", ErrLoss, b.at.seq)
	}
	return nil
}

// departs says what the log of a later head with the same owner has that h does not account for, "" if it is the same. Others may
// change a volume's head beside its owner, but never its log.
func (h *Head) departs(later *Head) string {
	switch {
	case later.Gen < h.Gen:
		return fmt.Sprintf("it went back from generation %d to %d", h.Gen, later.Gen)
	case later.Segment != h.Segment:
		return fmt.Sprintf("its last segment is %d, not %d", later.Segment, h.Segment)
	case later.Write != h.Write:
		return fmt.Sprintf("its last write is %d, not %d", later.Write, h.Write)
	case (later.Root == nil) != (h.Root == nil) || h.Root != nil && *later.Root != *h.Root:
		return "it has another map"
	case !slices.Equal(later.Tail, h.Tail):
		return "it names other segments"
	case (later.Journal == nil) != (h.Journal == nil) || h.Journal != nil && *later.Journal != *h.Journal:
		return "it names another journal"
	}
	return ""
}

// decodeHead reads a head and checks all that others rely on.
func decodeHead(p []byte) (*Head, error) {
	if len(p) > maxHead {
		return nil, fmt.Errorf("head of %d bytes: %w", len(p), ErrCorrupt)
	}
	h := new(Head)
	if err := unseal("head", headVersion, p, h); err != nil {
		return nil, err
	}
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("head: %w: %w", ErrCorrupt, err)
	}
	return h, nil
}

func (h *Head) check() error {
	if h.Block != Block || h.Size < MinSize || h.Size > MaxSize || h.Size%Block != 0 {
		return fmt.Errorf("%d bytes in blocks of %d", h.Size, h.Block)
	}
	if _, err := ParseClass(string(h.Class)); err != nil {
		return err
	}
	if h.Mode != "" && h.Mode != ModeReadOnly || h.Parents != nil || h.Snapshots != nil || h.Deadlists != "" || h.Keys != nil {
		return fmt.Errorf("it has what this version does not know: %w", ErrVersion)
	}
	last := uint64(0)
	for _, r := range h.Tail {
		if r.Seq <= last || r.Seq > h.Segment || r.Epoch > h.Epoch || r.Size > maxSegment || r.Table > r.Size {
			return fmt.Errorf("segment %d of the tail is impossible", r.Seq)
		}
		last = r.Seq
	}
	if h.MaxAge < 1 || h.MaxAge > 86400 {
		return fmt.Errorf("maximum age of %d s", h.MaxAge)
	}
	if h.Root != nil {
		return h.Root.check()
	}
	return nil
}

// Keys of a volume's objects.
func volumePrefix(id ID) string  { return "v/" + id.String() + "/" }
func headKey(id ID) string       { return volumePrefix(id) + "head" }
func nameKey(name string) string { return "name/" + name }
func memberKey(node ID) string   { return "node/" + node.String() }

func (r SegmentRef) key(id ID) string {
	return fmt.Sprintf("%sseg/%016x/%016x-%08x", volumePrefix(id), r.Epoch, r.Seq, r.Random)
}

// IsSegment tells keys of data, of which there is much, from those of what is small and frees room.
func IsSegment(key string) bool { return strings.Contains(key, "/seg/") }

// parseSegmentKey reads a key below a volume's prefix.
func parseSegmentKey(key string) (r SegmentRef, ok bool) {
	n, err := fmt.Sscanf(key, "seg/%016x/%016x-%08x", &r.Epoch, &r.Seq, &r.Random)
	return r, err == nil && n == 3
}

// CheckName refuses what is no name of a volume.
func CheckName(name string) error {
	if name == "" || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" ||
		strings.IndexByte("-_.", name[0]) >= 0 {
		return fmt.Errorf("name %q: want up to 63 lower case letters, digits and - _ . beginning with a letter or digit", name)
	}
	return nil
}
