// Package httprange reads what HTTP servers say of the ranges that they send.
//
// Belongs here: headers of ranges, for blobs and objects alike. Does not: requests.
package httprange
