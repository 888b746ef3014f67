package conformance_test

import "testing"

// operatorsTrials are what operators did to volumes when that went wrong, each with the tests that show the right outcome.
var operatorsTrials = map[string][]string{
	// Bytes and histories.
	"a node comes back late, and its journal is older than what its successor flushed": {
		"TestStaleJournal", "TestSimulation",
	},
	"a machine is restored with its memory, and goes on": {
		"TestForked", "TestHeadSucceeds", "TestPausedProcess",
	},
	"two copies of a machine write one journal": {
		"TestForkedJournal", "TestSimulation",
	},
	"a segment passes for another of its number": {
		"TestForked", "TestFormat1", "TestSegment",
	},
	"a store is put back to an earlier state, and the journal is younger": {
		"TestPutBack", "TestLeaseOfEarlierLife", "TestSeenHead", "TestSeenLater",
	},
	"attach while a detach still drains": {
		"TestVolumeBounces", "TestCallers", "TestEveryOrder", "TestVolumePairs",
	},
	"mount and umount side by side": {
		"TestVolumeMountBesideMkfs", "TestVolumePairs",
	},
	"a copy of a store is attached": {
		"TestVolumeCopiedStore", "TestCopiedStore", "TestVolumeOperators",
	},
	"volumes of one name in two stores": {
		"TestVolumeSameNames", "TestSameName", "TestNameInTwoStores",
	},
	"detach while a program has the device open": {
		"TestVolumeOpen", "TestVolumeSeenElsewhere",
	},
	// Outages.
	"the store's directory is renamed for longer than a lease": {
		"TestVolumeStoreRenamed", "TestVolumeRestartedWithoutStore",
	},
	"a proxy answers 404 for longer than a lease": {
		"TestVolumeStoreNotFound", "TestLeaseAndAbsence",
	},
	"one store by two spellings": {
		"TestVolumeTwoSpellings", "TestTwoURLs",
	},
	"a second remorad on a copy of a root": {
		"TestVolumeCopiedRoot", "TestNodeLock", "TestCopiedDiary",
	},
	"one store hangs, and another one's volume is read": {
		"TestVolumeOperators", "TestHangingStore", "TestVolumeApart", "TestEachAlone",
	},
	"verbs beside a detach that waits for its store": {
		"TestVolumeBounces", "TestVolumeAbandoned", "TestQuiet", "TestDetachWaits",
	},
	"a node comes back without its device, and another one wants the volume": {
		"TestVolumeWithoutDevice", "TestDetachLater", "TestSettleAnothers",
	},
	"the machine's id changes": {
		"TestMachineID",
	},
	"remorad is killed for good, and its holder holds nothing": {
		"TestVolumeNothingStays", "TestHold", "TestChildrenInherit",
	},
	"remorad is killed while it makes or takes away a device": {
		"TestVolumeKilledDetaching", "TestVolumePairs",
	},
	"the disk below the journal is full": {
		"TestJournalDiskFull", "TestVolumePostgresFaults", "TestVolumeDiskFull",
	},
	"a lease that nobody can keep": {
		"TestReadConfig",
	},
	"connections die without a word": {
		"TestVolumeSilentLink", "TestSilentConnections", "TestVolumePostgresFaults",
	},
	"Ctrl-C while a file system is made or grows, and while a volume is attached": {
		"TestVolumePairs", "TestVolumeOperators", "TestProgramsAreLeftAlone", "TestHalfTaken",
	},
	// Habits.
	"a synonym or a mistyped verb": {
		"TestSynonyms", "TestUnknownCommands",
	},
	"an ext4 that needs no check is mounted": {
		"TestVolumeCheckedWhenNeeded",
	},
	"ls of a mistyped store": {
		"TestVolumeRestartedWithoutStore",
	},
	"a read-only mount of each file system": {
		"TestVolumeMountRefused",
	},
	"journals that another node's taking has left behind": {
		"TestVolumeJournals", "TestVolumeJournalCommands", "TestSalvage",
	},
	"an attach beside a journal of the default size": {
		"TestVolumeSpareJournal", "TestSpare",
	},
}

// TestOperatorsTrials: for everything that operators' volumes once failed at there is a test that shows the right outcome.
func TestOperatorsTrials(t *testing.T) {
	t.Parallel()
	defined := definedTests(t)
	for trial, tests := range operatorsTrials {
		for _, name := range tests {
			if !defined[name] {
				t.Errorf("%s: there is no test %s", trial, name)
			}
		}
	}
}
