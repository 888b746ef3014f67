package layout

import "fmt"

// A tree may have what its entries list, and besides:
//
//   - nodes that no entry lists: the directories that paths and links imply. A symbolic link to a/a/a… makes 2,047 of them for
//     each path that leads through it, so entries bound their number, not the entries' bytes.
//   - parts of paths that are walked behind a symbolic link, for the same reason.
//   - bytes of the paths of unlisted directories, which grow with the square of the depth.
//
// Each has room for what small layers do, and a share for each entry that no real layer needs: usual layers list their
// directories, and those that list none have fewer of them than files. The room is small where paths are short, so that refusing a
// layer costs no more than reading it: a path of n bytes leads through n/2 directories at most, and without links no layer has more.
const (
	fewNodes     = 4 << 10
	freeNodes    = 64 << 10
	bytesANode   = 2 // of paths, and of links' targets
	nodesAnEntry = 4
	freeSteps    = 64 << 10
	stepsAnEntry = 256
	stepBytes    = 32 // of a path that copying them counts as a step
	freePaths    = 8 << 20
	pathsAnEntry = 256
)

// What the tree takes of memory until an image was made of it, in bytes: as measured, garbage included.
const (
	nodeCost   = 896
	dirCost    = 512 // more than another node
	nameCost   = 64  // and the name's bytes
	xattrCost  = 64  // and the bytes of name and value
	extentCost = 256
	unitCost   = 128
	// growStep is by how much memory is asked for each time.
	growStep = 4 << 20
)

// An Account counts memory that a layer takes, within Limits.Tree and what Limits.Grow allows.
type Account struct {
	limits *Limits
	bytes  int64
	asked  int64 // of Limits.Grow
}

// NewAccount returns an Account of which somebody else has counted some bytes already.
func NewAccount(limits *Limits, counted int64) Account {
	return Account{limits: limits, asked: counted}
}

// tally counts what a tree takes.
type tally struct {
	Account
	limits  Limits
	entries int64 // that were added so far
	named   int64 // bytes of their paths, and of what links lead to
	nodes   int64
	steps   int64
}

func newTally(limits Limits) *tally {
	t := &tally{limits: limits}
	t.Account = NewAccount(&t.limits, 0)
	return t
}

// entry counts an entry whose path, and link, have some bytes.
func (t *tally) entry(bytes int) error {
	t.entries++
	t.named += int64(bytes)
	if t.limits.Paths -= int64(bytes); t.limits.Paths < 0 {
		return fmt.Errorf("%w: the paths of its first %d entries have more bytes than the limit of all paths", ErrBeyond, t.entries)
	}
	return nil
}

// node counts an inode before it is made.
func (t *tally) node(in *Inode) error {
	t.nodes++
	if limit := int64(t.limits.Nodes); t.nodes > limit {
		return fmt.Errorf("%w: more than %d files and directories, unlisted ones included (limit %d)", ErrBeyond, limit, limit)
	}
	t.named += int64(len(in.Target))
	if limit := min(freeNodes, fewNodes+t.named/bytesANode) + nodesAnEntry*t.entries; t.nodes > limit {
		return fmt.Errorf("%w: %d entries make more than %d files and directories, unlisted ones included", ErrBeyond, t.entries, limit)
	}
	n := int64(nodeCost + len(in.Target))
	if in.IsDir() {
		n += dirCost
	}
	if err := t.Take(n); err != nil {
		return err
	}
	return t.xattrs(in.Xattrs)
}

// xattrs counts attributes.
func (t *tally) xattrs(all []Xattr) error {
	n := int64(0)
	for _, x := range all {
		n += int64(xattrCost + len(x.Name) + len(x.Value))
	}
	return t.Take(n)
}

// step counts parts of a path that are walked behind a symbolic link.
func (t *tally) step(n int, dir string) error {
	t.steps += int64(n)
	if limit := freeSteps + stepsAnEntry*t.entries; t.steps > limit {
		return fmt.Errorf("%w: symbolic links lead %d entries through more than %d directories, the last in %.64q", ErrBeyond,
			t.entries, limit, dir)
	}
	return nil
}

// Take counts bytes of memory before they are taken.
func (a *Account) Take(n int64) error {
	if a.bytes += n; a.bytes > a.limits.Tree {
		return fmt.Errorf("%w: its tree takes more than %d bytes of memory (limit)", ErrBeyond, a.limits.Tree)
	}
	if a.limits.Grow == nil || a.bytes <= a.asked {
		return nil
	}
	more := max(growStep, a.bytes-a.asked)
	a.asked += more
	return a.limits.Ask(more)
}

// Kept returns how many bytes of memory a Layout takes until its image is made, about.
func (l *Layout) Kept() int64 {
	n := int64(len(l.Inodes))*256 + int64(len(l.Extents)+len(l.Units))*96
	for i := range l.Inodes {
		in := &l.Inodes[i]
		n += int64(len(in.Target)) + int64(len(in.Entries))*64
		for _, x := range in.Xattrs {
			n += int64(xattrCost + len(x.Name) + len(x.Value))
		}
	}
	for _, p := range l.Points {
		n += int64(96 + len(p.Window))
	}
	for _, d := range l.Implicit {
		n += int64(32 + len(d.Path))
	}
	return n
}

// Ask asks Grow for bytes of memory, if there is one.
func (l *Limits) Ask(n int64) error {
	if l.Grow == nil || n <= 0 {
		return nil
	}
	return l.Grow(n)
}

// Take counts bytes of memory that the Builder's caller is about to take, as if the tree took them.
func (b *Builder) Take(bytes int64) error { return b.tally.Take(bytes) }

// TakeUnits does so for a number of units, with the points at which they begin.
func (b *Builder) TakeUnits(n int) error { return b.tally.Take(int64(n) * unitCost) }

// paths refuses paths of unlisted directories that have so many bytes together.
func (t *tally) paths(bytes int64) error {
	if limit := freePaths + pathsAnEntry*t.entries; bytes > limit {
		return fmt.Errorf("%w: the paths of its unlisted directories have more than %d bytes for %d entries", ErrBeyond, limit, t.entries)
	}
	return t.Take(0)
}
