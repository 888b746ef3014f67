package nbd

import "github.com/pojntfx/go-nbd/pkg/protocol"

// What protocol.go of go-nbd does not name. All numbers on the wire are big-endian.
const (
	flagNoZeroes = 1 << 1 // of the handshake, server and client: EXPORT_NAME's answer has no padding

	optExportName      = 1
	optStartTLS        = 5
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10

	repMetaContext  = 4
	repErr          = 1 << 31
	repErrPolicy    = repErr | 2
	repErrInvalid   = repErr | 3
	repErrTLSNeeded = repErr | 5
	repErrTooBig    = repErr | 9

	tfHasFlags  = uint16(1 << 0) // transmission flags
	tfReadOnly  = uint16(1 << 1)
	tfFlush     = uint16(1 << 2)
	tfFUA       = uint16(1 << 3)
	tfTrim      = uint16(1 << 5)
	tfZeroes    = uint16(1 << 6)
	tfDF        = uint16(1 << 7)
	tfMultiConn = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	tfCache     = uint16(1 << 10)
	tfFastZero  = uint16(1 << 11)

	cmdFlush  = uint16(3)
	cmdTrim   = uint16(4)
	cmdCache  = uint16(5)
	cmdZeroes = uint16(6)
	cmdStatus = uint16(7)

	cfFUA      = uint16(1 << 0) // command flags
	cfNoHole   = uint16(1 << 1)
	cfDF       = uint16(1 << 2)
	cfReqOne   = uint16(1 << 3)
	cfFastZero = uint16(1 << 4)

	structuredMagic = uint32(0x668e33ef)
	chunkDone       = uint16(1 << 0)
	chunkNone       = uint16(0)
	chunkData       = uint16(1)
	chunkStatus     = uint16(5)
	chunkError      = uint16(1<<15 | 1)

	stateHole = uint32(1 << 0) // of base:allocation
	stateZero = uint32(1 << 1)

	requestLen = 28 // bytes of a request's header
	replyLen   = 16 // of a simple reply
	chunkLen   = 20 // of a structured reply's header
)

// Limits.
const (
	// maxRequest is the most bytes of one read or write, which is what clients may assume that do not ask.
	maxRequest = 32 << 20

	maxOption     = 64 << 10 // bytes of an option's data
	maxOptions    = 1024     // a handshake
	maxName       = 4096     // bytes of a string, by the specification
	maxExtents    = 4096     // ranges in one answer to BLOCK_STATUS
	maxErrorText  = 256
	metaContext   = "base:allocation"
	metaContextID = 1
)
