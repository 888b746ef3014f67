// Package s3store is a store.Store in a bucket of an S3 server.
//
// Conditional puts are S3's If-None-Match and If-Match. This package repeats no request: only its
// caller knows whether that is safe. Credentials are asked for anew when the server refuses them.
//
// Belongs here: requests and what their errors mean. Does not: retries, what the objects are.
package s3store
