// Calls the model `sales` over the Open Inference Protocol's gRPC.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "example.com/go-client/inference"
)

func main() {
	target := os.Getenv("GRPC")
	if target == "" {
		target = "127.0.0.1:8002"
	}
	connection, err := grpc.Dial(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	client := pb.NewGRPCInferenceServiceClient(connection)

	fmt.Println("Two rows")
	if err := predict(client, "sales", 50, 100); err != nil {
		explain(err)
		os.Exit(1)
	}
	fmt.Println("A model that is not there")
	if err := predict(client, "nobody", 50); err != nil {
		explain(err)
	}
}

// predict asks for the sales at each television budget, and prints them with their ids.
func predict(client pb.GRPCInferenceServiceClient, model string, budgets ...float64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	answer, err := client.ModelInfer(ctx, &pb.ModelInferRequest{
		ModelName: model,
		Inputs: []*pb.ModelInferRequest_InferInputTensor{{
			Name:     "TV",
			Datatype: "FP64",
			Shape:    []int64{int64(len(budgets))},
			Contents: &pb.InferTensorContents{Fp64Contents: budgets},
		}},
	})
	if err != nil {
		return err
	}
	outputs := map[string]*pb.InferTensorContents{}
	for _, output := range answer.Outputs {
		outputs[output.Name] = output.Contents
	}
	for i, value := range outputs["prediction"].GetFp64Contents() {
		id := outputs["prediction_id"].GetBytesContents()[i]
		fmt.Printf("  TV=%v prediction=%.6f version=%s id=%s\n", budgets[i], value, answer.ModelVersion, id)
	}
	return nil
}

// explain prints a status with the details that the server gives.
func explain(err error) {
	told := status.Convert(err)
	fmt.Printf("  %s: %s\n", told.Code(), told.Message())
	for _, detail := range told.Details() {
		switch known := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Printf("  code %s\n", known.Reason)
		case *errdetails.BadRequest:
			for _, field := range known.FieldViolations {
				fmt.Printf("  field %s: %s\n", field.Field, field.Description)
			}
		case *errdetails.RetryInfo:
			fmt.Printf("  try again in %s\n", known.RetryDelay.AsDuration())
		}
	}
}
