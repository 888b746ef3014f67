package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// handshake is a connection's first phase: the client chooses an export. It reads no byte more than it
// needs, since TLS or requests may follow.
type handshake struct {
	s    *Server
	conn net.Conn // the TLS connection once there is one
	log  *slog.Logger
	door door

	admitted   bool // the door has let it in
	tls        bool
	noZeroes   bool
	structured bool   // the client understands structured replies
	meta       bool   // it wants base:allocation
	metaOf     string // of this export
}

var (
	errAborted  = errors.New("the client has ended the handshake")
	errProtocol = errors.New("not the NBD protocol")
)

// admit waits for room for a client that has chosen an export.
func (h *handshake) admit(ctx context.Context) (err error) {
	if err = h.door.admit(ctx); err == nil {
		h.admitted = true
		err = h.conn.SetDeadline(time.Now().Add(handshakePatient)) // for the answer
	}
	return err
}

// close makes room, and ends a TLS session properly; the socket is the server's.
func (h *handshake) close() {
	if h.admitted {
		h.door.room.Release(1)
	}
	if t, ok := h.conn.(*tls.Conn); ok {
		_ = t.Close() // the client may be gone already
	}
}

// run returns the export that the client wants to use.
func (h *handshake) run(ctx context.Context) (*export, error) {
	hello := protocol.NegotiationNewstyleHeader{
		OldstyleMagic: protocol.NEGOTIATION_MAGIC_OLDSTYLE, OptionMagic: protocol.NEGOTIATION_MAGIC_OPTION,
		HandshakeFlags: protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE | flagNoZeroes,
	}
	if err := binary.Write(h.conn, binary.BigEndian, hello); err != nil {
		return nil, err
	}
	var flags uint32
	if err := binary.Read(h.conn, binary.BigEndian, &flags); err != nil {
		return nil, err
	}
	if flags&^uint32(protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE|flagNoZeroes) != 0 {
		return nil, fmt.Errorf("%w: flags %#x", errProtocol, flags)
	}
	h.noZeroes = flags&flagNoZeroes != 0
	for range maxOptions {
		x, err := h.option(ctx)
		if x != nil || err != nil {
			return x, err
		}
	}
	return nil, fmt.Errorf("more than %d options", maxOptions)
}

// option reads and answers one option. It returns the export if the handshake is over.
func (h *handshake) option(ctx context.Context) (*export, error) {
	var o protocol.NegotiationOptionHeader
	if err := binary.Read(h.conn, binary.BigEndian, &o); err != nil {
		return nil, err
	}
	if o.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
		return nil, fmt.Errorf("%w: option %#x", errProtocol, o.OptionMagic)
	}
	if o.Length > maxOption {
		if o.ID == optExportName {
			return nil, fmt.Errorf("%w: a name of %d bytes", errProtocol, o.Length)
		}
		if _, err := io.CopyN(io.Discard, h.conn, int64(o.Length)); err != nil {
			return nil, err
		}
		return nil, h.refuse(o.ID, repErrTooBig, "too long")
	}
	data := make([]byte, o.Length)
	if _, err := io.ReadFull(h.conn, data); err != nil {
		return nil, err
	}
	if h.s.opts.TLS != nil && !h.tls {
		return nil, h.beforeTLS(ctx, o.ID, data)
	}
	switch o.ID {
	case optExportName:
		return h.exportName(ctx, string(data))
	case protocol.NEGOTIATION_ID_OPTION_ABORT:
		return nil, h.abort()
	case protocol.NEGOTIATION_ID_OPTION_LIST:
		return nil, h.list(data)
	case optStartTLS:
		if h.tls {
			return nil, h.refuse(o.ID, repErrInvalid, "TLS is in use already")
		}
		return nil, h.refuse(o.ID, repErrPolicy, "this server has no certificate")
	case protocol.NEGOTIATION_ID_OPTION_INFO, protocol.NEGOTIATION_ID_OPTION_GO:
		return h.info(ctx, o.ID, data)
	case optStructuredReply:
		if len(data) != 0 {
			return nil, h.refuse(o.ID, repErrInvalid, "has data")
		}
		h.structured = true
		return nil, h.reply(o.ID, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
	case optListMeta, optSetMeta:
		return nil, h.metaContexts(o.ID, data)
	}
	return nil, h.refuse(o.ID, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED, "")
}

// beforeTLS answers what a client says in the clear to a server that wants TLS.
func (h *handshake) beforeTLS(ctx context.Context, id uint32, data []byte) error {
	switch id {
	case protocol.NEGOTIATION_ID_OPTION_ABORT:
		return h.abort()
	case optExportName: // has no way to say no
		return errors.New("the client wants no TLS")
	case optStartTLS:
		if len(data) != 0 {
			return h.refuse(id, repErrInvalid, "has data")
		}
		if err := h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil); err != nil {
			return err
		}
		t := tls.Server(h.conn, h.s.opts.TLS)
		if err := t.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
		h.conn, h.tls = t, true
		return nil
	}
	return h.refuse(id, repErrTLSNeeded, "this server wants TLS")
}

func (h *handshake) abort() error {
	_ = h.reply(protocol.NEGOTIATION_ID_OPTION_ABORT, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil) // it need not wait for that
	return errAborted
}

// reply sends one reply to an option.
func (h *handshake) reply(id, kind uint32, data []byte) error {
	p := make([]byte, 0, 20+len(data))
	p = binary.BigEndian.AppendUint64(p, protocol.NEGOTIATION_MAGIC_REPLY)
	p = binary.BigEndian.AppendUint32(p, id)
	p = binary.BigEndian.AppendUint32(p, kind)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	_, err := h.conn.Write(append(p, data...))
	return err
}

func (h *handshake) refuse(id, kind uint32, why string) error { return h.reply(id, kind, []byte(why)) }

// exportName answers the oldest way to choose an export.
func (h *handshake) exportName(ctx context.Context, name string) (*export, error) {
	x := h.s.find(name)
	if x == nil {
		return nil, fmt.Errorf("no export is named %q", name)
	}
	if err := h.admit(ctx); err != nil {
		return nil, err
	}
	p := binary.BigEndian.AppendUint64(nil, uint64(x.Device.Size()))
	p = binary.BigEndian.AppendUint16(p, x.flags(h.structured))
	if !h.noZeroes {
		p = append(p, make([]byte, 124)...)
	}
	_, err := h.conn.Write(p)
	return x, err
}

func (h *handshake) list(data []byte) error {
	const id = protocol.NEGOTIATION_ID_OPTION_LIST
	if len(data) != 0 {
		return h.refuse(id, repErrInvalid, "has data")
	}
	for _, x := range h.s.exports {
		p := binary.BigEndian.AppendUint32(nil, uint32(len(x.Name)))
		p = append(append(p, x.Name...), x.Description...)
		if err := h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_SERVER, p); err != nil {
			return err
		}
	}
	return h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
}

// info answers INFO and GO.
func (h *handshake) info(ctx context.Context, id uint32, data []byte) (*export, error) {
	r := fields{data}
	name, err := r.text()
	if err != nil {
		return nil, h.refuse(id, repErrInvalid, err.Error())
	}
	n, err := r.uint16()
	if err != nil || len(r.p) != 2*int(n) {
		return nil, h.refuse(id, repErrInvalid, "a wrong number of requests")
	}
	x := h.s.find(name)
	if x == nil {
		return nil, h.refuse(id, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, fmt.Sprintf("no export is named %q", name))
	}
	if id == protocol.NEGOTIATION_ID_OPTION_GO {
		if err := h.admit(ctx); err != nil {
			return nil, err
		}
	}
	send := func(kind uint16, more []byte) error {
		p := binary.BigEndian.AppendUint16(nil, kind)
		return h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_INFO, append(p, more...))
	}
	e := binary.BigEndian.AppendUint64(nil, uint64(x.Device.Size()))
	e = binary.BigEndian.AppendUint16(e, x.flags(h.structured))
	block := uint32(x.Device.BlockSize())
	sizes := binary.BigEndian.AppendUint32(nil, block)
	sizes = binary.BigEndian.AppendUint32(sizes, max(block, preferredBlock))
	sizes = binary.BigEndian.AppendUint32(sizes, maxRequest)
	for _, err := range []error{
		send(protocol.NEGOTIATION_TYPE_INFO_EXPORT, e), send(protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE, sizes),
		send(protocol.NEGOTIATION_TYPE_INFO_NAME, []byte(x.Name)),
	} {
		if err != nil {
			return nil, err
		}
	}
	if x.Description != "" {
		if err := send(protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION, []byte(x.Description)); err != nil {
			return nil, err
		}
	}
	if err := h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil); err != nil || id == protocol.NEGOTIATION_ID_OPTION_INFO {
		return nil, err
	}
	h.meta = h.meta && h.metaOf == x.Name
	return x, nil
}

const preferredBlock = 4096

// flags returns an export's transmission flags.
func (x *export) flags(structured bool) uint16 {
	f := tfHasFlags | tfMultiConn | tfCache
	if structured {
		f |= tfDF
	}
	if x.writer == nil {
		return f | tfReadOnly
	}
	return f | tfFlush | tfFUA | tfTrim | tfZeroes | tfFastZero
}

// metaContexts answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (h *handshake) metaContexts(id uint32, data []byte) error {
	set := id == optSetMeta
	if set {
		h.meta = false
	}
	if !h.structured {
		return h.refuse(id, repErrInvalid, "structured replies come first")
	}
	r := fields{data}
	name, err := r.text()
	if err != nil {
		return h.refuse(id, repErrInvalid, err.Error())
	}
	n, err := r.uint32()
	if err != nil {
		return h.refuse(id, repErrInvalid, err.Error())
	}
	wanted := !set && n == 0
	for range n {
		q, err := r.text()
		if err != nil {
			return h.refuse(id, repErrInvalid, err.Error())
		}
		wanted = wanted || q == metaContext || !set && q == "base:"
	}
	if len(r.p) != 0 {
		return h.refuse(id, repErrInvalid, "too long")
	}
	if h.s.find(name) == nil {
		return h.refuse(id, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, fmt.Sprintf("no export is named %q", name))
	}
	if wanted {
		p := binary.BigEndian.AppendUint32(nil, metaContextID)
		if err := h.reply(id, repMetaContext, append(p, metaContext...)); err != nil {
			return err
		}
		if set {
			h.meta, h.metaOf = true, name
		}
	}
	return h.reply(id, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
}

// fields reads an option's data.
type fields struct{ p []byte }

var errShort = errors.New("too short")

func (f *fields) uint16() (uint16, error) {
	if len(f.p) < 2 {
		return 0, errShort
	}
	v := binary.BigEndian.Uint16(f.p)
	f.p = f.p[2:]
	return v, nil
}

func (f *fields) uint32() (uint32, error) {
	if len(f.p) < 4 {
		return 0, errShort
	}
	v := binary.BigEndian.Uint32(f.p)
	f.p = f.p[4:]
	return v, nil
}

func (f *fields) text() (string, error) {
	n, err := f.uint32()
	if err != nil || n > maxName || int(n) > len(f.p) {
		return "", errShort
	}
	s := string(f.p[:n])
	f.p = f.p[n:]
	return s, nil
}
